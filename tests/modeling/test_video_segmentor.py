from __future__ import annotations

import pytest
import torch

from vss2.errors import InputError
from vss2.modeling.window import PUBLISHED_START_TABLE, BlockWindow, OffsetWindow

from .tiny import TinySegmentor, random_frames

PUBLISHED = OffsetWindow((-9, -6, -3, 0), PUBLISHED_START_TABLE)


def items(frames: torch.Tensor, video: str) -> list[dict]:
    return [
        {
            "frame": frame,
            "video_id": video,
            "frame_index": i,
            "first_frame": i == 0,
            "last_frame": i == len(frames) - 1,
            "height": 30,
            "width": 37,
            "file_name": f"{video}/{i}.jpg",
            "label_file": None,
        }
        for i, frame in enumerate(frames)
    ]


def answers_of(model: TinySegmentor, stream: list[dict], batch: int) -> dict:
    out = {}
    with torch.no_grad():
        for start in range(0, len(stream), batch):
            for answer in model(stream[start : start + batch]):
                out[answer["video_id"], answer["frame_index"]] = answer
    return out


@pytest.mark.parametrize("window", [PUBLISHED, BlockWindow(2)])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_answers_depend_on_neither_batch_nor_other_videos(window, batch: int) -> None:
    model = TinySegmentor(window, eval_output="sem_seg").eval()
    one, two = items(random_frames(13, seed=1), "one"), items(random_frames(7, seed=2), "two")
    together = answers_of(model, one + two, batch)
    alone = answers_of(model, two, 1) | answers_of(model, one, 1)
    assert together.keys() == alone.keys()
    assert len(together) == 20
    for key, answer in together.items():
        torch.testing.assert_close(answer["sem_seg"], alone[key]["sem_seg"], rtol=0, atol=1e-5)
        assert answer["sem_seg"].shape == (3, 30, 37)
        assert answer["file_name"] == f"{key[0]}/{key[1]}.jpg"


def test_labels_by_default() -> None:
    answers = answers_of(TinySegmentor(PUBLISHED).eval(), items(random_frames(2), "v"), 1)
    assert set(answers["v", 0]) >= {"labels", "video_id", "frame_index", "label_file"}
    assert answers["v", 1]["labels"].dtype == torch.uint8


def test_a_video_must_start_with_its_first_frame() -> None:
    model = TinySegmentor(PUBLISHED).eval()
    with pytest.raises(InputError, match="frame 1 of video 'v'"):
        model(items(random_frames(3), "v")[1:])


def test_predict_clip_checks_its_input() -> None:
    model = TinySegmentor(PUBLISHED).eval()
    assert model.predict_clip(random_frames(4)).shape == (1, 3, 8, 10)
    assert model.predict_clip(random_frames(1)).shape == (1, 3, 8, 10)
    with pytest.raises(InputError, match="1 or 4 frames"):
        model.predict_clip(random_frames(3))
    with pytest.raises(InputError, match="uint8 frames"):
        model.predict_clip(random_frames(4).float())
    with pytest.raises(InputError, match="too small"):
        model.predict_clip(random_frames(4, 16, 40))


def test_padding_is_zero_for_the_network() -> None:
    model = TinySegmentor(PUBLISHED).train()
    frames = random_frames(4)
    sample = {
        "frames": frames,
        "sem_seg": torch.zeros(4, 32, 40, dtype=torch.int64),
        "labelled": torch.ones(4, dtype=torch.bool),
        "image_size": (20, 24),
    }
    inside = model.normalize(frames[:, :, :20, :24]).abs().sum() / frames.numel()
    torch.testing.assert_close(model([sample])["loss"], inside)


def test_bad_options_are_named() -> None:
    with pytest.raises(InputError, match="eval_output"):
        TinySegmentor(PUBLISHED, eval_output="logits")
    with pytest.raises(InputError, match="num_classes"):
        TinySegmentor(PUBLISHED, num_classes=256)
