from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from vos_files import object_ids, stems, write_frames

from vss2.data.build import build_train_loader
from vss2.data.clip_sampling import SkipClipSampler, SkipCurriculum
from vss2.data.image_io import write_image, write_label
from vss2.data.mappers import DATASET_MAPPER_REGISTRY
from vss2.data.thin_plate import ThinPlateWarp
from vss2.data.vos_mappers import (
    ObjectClipMapper,
    ObjectFrameMapper,
    StaticClipMapper,
    read_grey_mask,
)
from vss2.data.vos_sampling import ObjectSampler
from vss2.data.vos_transforms import (
    ColorJitter,
    RandomAffine,
    RandomFrameCrop,
    RandomResizedCrop,
    RepeatFrame,
    ResizeShorterSide,
)
from vss2.errors import InputError


def videos(folder: Path, count: int = 3, frames: int = 8, ids=(2, 7)) -> list[dict]:
    result = []
    for k in range(count):
        base = folder / f"video{k}"
        write_frames(base / "i", base / "m", stems(frames), ids=ids)
        listed = [
            {
                "file_name": str(base / f"i/{stem}.jpg"),
                "label_file": str(base / f"m/{stem}.png"),
                "frame_index": index,
            }
            for index, stem in enumerate(stems(frames))
        ]
        result.append({"video_id": f"video{k}", "frames": listed})
    return result


def mapper(augmentations=(), max_skips=(2,), fractions=(), max_objects=2, tries=5):
    curriculum = SkipCurriculum(max_skips, fractions, max_iter=100, clips_per_iter=2)
    objects = ObjectSampler(max_objects)
    return ObjectClipMapper(SkipClipSampler(curriculum), augmentations, objects, tries)


def augmentations() -> list:
    return [
        RandomResizedCrop((16, 16), (0.5, 1.0)),
        ColorJitter(0.1, per_frame=True),
        RandomAffine(10),
    ]


def test_a_sample_holds_frames_and_renumbered_objects(tmp_path):
    (video,) = videos(tmp_path, 1)
    sample = mapper()(video, np.random.default_rng(0), 0)
    assert sample["frames"].shape == (3, 3, 24, 40)
    assert sample["frames"].dtype == sample["masks"].dtype == torch.uint8
    assert sample["num_objects"] == 2
    assert sample["image_size"] == (24, 40)
    assert sample["video_id"] == "video0"
    flipped = sample["masks"][0, 8, 3 + sample["frame_indices"][0]] == 2
    for t, index in enumerate(sample["frame_indices"]):
        stored = object_ids(24, 40, index, (2, 1) if flipped else (1, 2))
        np.testing.assert_array_equal(sample["masks"][t], stored)
        assert abs(int(sample["frames"][t, 0, 0, 0]) - 10 * index) <= 1


def test_one_object_of_a_video_or_none(tmp_path):
    (video,) = videos(tmp_path, 1)
    sample = mapper(max_objects=1)(video, np.random.default_rng(0), 0)
    assert (sample["num_objects"], int(sample["masks"].max())) == (1, 1)
    (empty,) = videos(tmp_path / "empty", 1, ids=())
    sample = mapper(tries=2)(empty, np.random.default_rng(0), 0)
    assert (sample["num_objects"], int(sample["masks"].max())) == (1, 0)


class Counting:
    """An augmentation that hides all objects the first few times."""

    def __init__(self, hides: int):
        self.hides, self.calls = hides, 0

    def __call__(self, clip, rng):
        self.calls += 1
        if self.calls <= self.hides:
            clip.labels = [np.zeros_like(mask) for mask in clip.labels]
        return clip


@pytest.mark.parametrize(("hides", "calls", "found"), [(0, 1, 2), (3, 4, 2), (9, 5, 0)])
def test_empty_first_frames_are_drawn_again(tmp_path, hides, calls, found):
    (video,) = videos(tmp_path, 1)
    counting = Counting(hides)
    sample = mapper([counting])(video, np.random.default_rng(0), 0)
    assert counting.calls == calls
    assert int(sample["masks"].max()) == found


def loader(listed, num_workers=0):
    return build_train_loader(
        dataset=listed,
        mapper=mapper(augmentations(), (1, 4), (0.02,)),
        total_batch_size=2,
        num_workers=num_workers,
        seed=3,
    )


def take(batches, count: int) -> list[dict]:
    iterator = iter(batches)
    return [sample for _ in range(count) for sample in next(iterator)]


def same(a: list[dict], b: list[dict]) -> bool:
    return all(
        torch.equal(x["frames"], y["frames"])
        and torch.equal(x["masks"], y["masks"])
        and x["frame_indices"] == y["frame_indices"]
        for x, y in zip(a, b, strict=True)
    )


def test_workers_and_resuming_change_nothing(tmp_path):
    """Also across the change of the gap, which comes after two iterations."""
    listed = videos(tmp_path)
    whole = take(loader(listed), 5)
    assert same(whole, take(loader(listed, num_workers=2), 5))
    first = loader(listed)
    assert same(whole[:2], take(first, 1))
    resumed = loader(listed)
    resumed.load_state_dict(first.state_dict())
    assert same(whole[2:], take(resumed, 4))


def test_the_gap_follows_the_position_in_the_stream(tmp_path):
    (video,) = videos(tmp_path, 1, frames=20)
    sampled = mapper((), (1, 8), (0.5,))

    def largest_gap(position: int) -> int:
        clips = [
            sampled(video, np.random.default_rng(k), position)["frame_indices"] for k in range(20)
        ]
        return max(abs(b - a) for c in clips for a, b in pairwise(c))

    assert largest_gap(0) == largest_gap(99) == 2
    assert largest_gap(100) > 4
    video["frame_step"] = 5
    assert largest_gap(100) == 2


def test_sizes_that_disagree_are_named(tmp_path):
    (video,) = videos(tmp_path, 1, frames=3)
    for frame in video["frames"]:
        write_label(frame["label_file"], object_ids(24, 41, 0))
    with pytest.raises(InputError, match=r"\.jpg is 24x40, .*\.png is 24x41"):
        mapper()(video, np.random.default_rng(0), 0)


def static_video(folder: Path, size=(40, 60)) -> dict:
    rng = np.random.default_rng(0)
    write_image(folder / "a.png", rng.integers(0, 255, (*size, 3), dtype=np.uint8))
    mask = np.zeros(size, np.uint8)
    mask[10:30, 15:40] = 255
    write_label(folder / "m.png", mask)
    frame = {"file_name": str(folder / "a.png"), "label_file": str(folder / "m.png")}
    return {"video_id": "a", "frames": [{**frame, "frame_index": 0}]}


def test_a_static_image_becomes_a_clip_with_soft_masks(tmp_path):
    static = StaticClipMapper(
        [
            RandomAffine(0, (0.8, 1.5), 0, "nearest", "nearest", per_frame=False),
            RepeatFrame(3),
            RandomAffine(20, (0.9, 1.1), 10, mask_interpolation="bicubic"),
            ResizeShorterSide(32),
            RandomFrameCrop((32, 32)),
            ThinPlateWarp(1.0),
        ]
    )
    sample = static(static_video(tmp_path), np.random.default_rng(1))
    assert sample["frames"].shape == (3, 3, 32, 32)
    assert sample["frame_indices"] == [0, 0, 0]
    assert sample["num_objects"] == 1
    soft = sample["soft_masks"]
    assert soft.shape == (3, 1, 32, 32)
    assert soft.dtype == torch.float32
    assert (soft.min(), soft.max()) == (0, 1)
    assert ((soft > 0) & (soft < 1)).any()
    assert torch.equal(sample["masks"], (soft[:, 0] > 0.5).byte())
    assert not torch.equal(sample["masks"][0], sample["masks"][1])
    again = static(static_video(tmp_path), np.random.default_rng(1))
    assert torch.equal(sample["frames"], again["frames"])


def test_frames_must_end_in_one_size(tmp_path):
    class Grow:
        def __call__(self, clip, rng):
            clip.frames[1] = np.pad(clip.frames[1], ((0, 1), (0, 0), (0, 0)))
            return clip

    with pytest.raises(InputError, match="end the augmentations with a crop"):
        StaticClipMapper([RepeatFrame(2), Grow()])(static_video(tmp_path), np.random.default_rng(0))


def test_grey_masks_are_read_from_colour_palette_and_grey_files(tmp_path):
    write_label(tmp_path / "p.png", np.array([[0, 1]], np.uint8), [(0, 0, 0), (255, 255, 255)])
    write_label(tmp_path / "g.png", np.array([[0, 77]], np.uint8))
    write_image(tmp_path / "c.png", np.array([[[0] * 3, [9] * 3]], np.uint8))
    for name, value in (("p", 255), ("g", 77), ("c", 9)):
        assert read_grey_mask(tmp_path / f"{name}.png").tolist() == [[0, value]]


def frame_item(folder: Path, mask: np.ndarray | None) -> dict:
    write_image(folder / "f.png", np.zeros((24, 40, 3), np.uint8))
    if mask is not None:
        write_label(folder / "g.png", mask)
    return {
        "file_name": str(folder / "f.png"),
        "label_file": None,
        "frame_index": 0,
        "mask_file": None if mask is None else str(folder / "g.png"),
        "required": True,
        "video_id": "v",
        "first_frame": True,
        "last_frame": False,
    }


def test_evaluation_items_carry_given_masks(tmp_path):
    mask = object_ids(24, 40, 0, (5, 255))
    item = ObjectFrameMapper()(frame_item(tmp_path, mask))
    assert (item["height"], item["width"]) == (24, 40)
    assert item["frame"].shape == (3, 24, 40)
    assert item["objects"] == [5]  # 255 is void
    assert item["required"] is True
    item = ObjectFrameMapper(single_object=True)(frame_item(tmp_path, mask))
    assert item["objects"] == [1]
    assert int(item["mask"].sum()) == 128
    assert "mask" not in ObjectFrameMapper()(frame_item(tmp_path, None))
    with pytest.raises(InputError, match="more than max_objects = 1"):
        ObjectFrameMapper(max_objects=1)(frame_item(tmp_path, object_ids(24, 40, 0, (5, 6))))


def test_mappers_are_registered_by_name():
    for kind in (ObjectClipMapper, ObjectFrameMapper, StaticClipMapper):
        assert DATASET_MAPPER_REGISTRY.get(kind.__name__) is kind
