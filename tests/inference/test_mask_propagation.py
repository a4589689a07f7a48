"""Runs that follow objects: masks of first and later frames, files, resume, sizes."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from tests.inference.tiny_propagator import TinyPropagator
from vss2.data.image_io import read_label, write_image, write_label
from vss2.data.video_io import VideoWriter, open_source
from vss2.data.vos_palette import DAVIS_PALETTE
from vss2.errors import InputError, InputFileError
from vss2.inference import GivenMasks, ResultWriter, Selection, Stopped, VideoPredictor, run

COUNT, SIZE = 8, (24, 36)
NAMES = ["background", *(f"object {k}" for k in range(1, 256))]


def square(identity, left, top=4, size=SIZE):
    ids = np.zeros(size, np.uint8)
    ids[top : top + 6, left : left + 6] = identity
    return ids


def moved(ids, frames):
    out = np.zeros_like(ids)
    out[:, frames:] = ids[:, : ids.shape[1] - frames]
    return out


@pytest.fixture
def frames(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(COUNT):
        write_image(tmp_path / f"frames/{k:05d}.png", rng.integers(0, 256, (*SIZE, 3), np.uint8))
    return tmp_path / "frames"


@pytest.fixture
def masks(tmp_path):
    """A first mask with objects 3 and 9; object 5 comes at frame 4, where 3 is corrected."""
    write_label(tmp_path / "first.png", square(3, 1) + square(9, 1, top=14), DAVIS_PALETTE)
    write_label(tmp_path / "later/00004.png", square(5, 20) + square(3, 10), DAVIS_PALETTE)
    return [tmp_path / "first.png", tmp_path / "later"]


def expected():
    """Labels of all frames with the masks of `masks`."""
    labels = []
    for t in range(COUNT):
        low = moved(square(9, 1, top=14), t)
        if t < 4:
            labels.append(low + moved(square(3, 1), t))
        else:
            labels.append(low + moved(square(5, 20) + square(3, 10), t - 4))
    return labels


def writer(folder, **options):
    return ResultWriter(folder, NAMES, DAVIS_PALETTE, rle=True, background=0, **options)


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("overlap", [False, True])
def test_files_hold_the_users_ids(frames, masks, tmp_path, overlap):
    given = GivenMasks(masks)
    predictor = VideoPredictor(TinyPropagator(), session={"protocol": "generic"}, masks=given)
    run(predictor, open_source(frames), writer(tmp_path / "out"), overlap=overlap)
    assert predictor.model.sessions[-1].protocol == "generic"
    assert given.unused == []
    for t, labels in enumerate(expected()):
        path = tmp_path / f"out/labels/{t:05d}.png"
        np.testing.assert_array_equal(read_label(path), labels)
        with Image.open(path) as image:
            assert image.getpalette()[: 3 * 10] == [v for c in DAVIS_PALETTE[:10] for v in c]
        document = json.loads((tmp_path / f"out/rle/{t:05d}.json").read_text())
        ids = [a["category_id"] for a in document["annotations"]]
        assert ids == [k for k in (3, 5, 9) if (labels == k).any()]
        for annotation in document["annotations"]:
            assert annotation["category_name"] == f"object {annotation['category_id']}"
            decoded = coco_mask.decode(annotation["segmentation"])
            np.testing.assert_array_equal(decoded, labels == annotation["category_id"])
    assert (tmp_path / "out/overlay.mp4").stat().st_size
    assert (tmp_path / "out/contact_sheet.png").stat().st_size


def test_background_is_not_painted(frames, masks, tmp_path, monkeypatch):
    from vss2.inference import results

    shown, listed = [], []
    overlay, legend = results.overlay, results.legend
    monkeypatch.setattr(
        results,
        "overlay",
        lambda *a, **k: shown.append((a[0], a[1], overlay(*a, **k))) or shown[-1][2],
    )
    monkeypatch.setattr(
        results, "legend", lambda *a, **k: listed.append([int(i) for i in a[2]]) or legend(*a, **k)
    )
    predictor = VideoPredictor(TinyPropagator(), masks=GivenMasks(masks))
    run(predictor, open_source(frames), writer(tmp_path / "out"), overlap=False)
    assert listed == [[3, 5, 9]]
    assert len(shown) == COUNT
    for frame, labels, picture in shown:
        np.testing.assert_array_equal(picture[labels == 0], frame[labels == 0])
        assert (picture[labels == 9] != frame[labels == 9]).any()


@pytest.mark.parametrize("every", [1, 3])
def test_a_stopped_run_goes_on_to_the_same_bytes(frames, masks, tmp_path, every):
    def go(folder, **options):
        predictor = VideoPredictor(TinyPropagator(), masks=GivenMasks(masks))
        selection = Selection(0, None, every)
        return run(predictor, open_source(frames), writer(folder), selection, **options)

    go(tmp_path / "whole")
    asked = iter([False] * 6 + [True] * 99)
    with pytest.raises(Stopped):
        go(tmp_path / "part", overlap=False, stop=lambda: next(asked))
    report = go(tmp_path / "part", resume=True)
    assert 0 < report.kept < report.frames
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_nothing_is_kept_of_past_frames(tmp_path):
    class Endless:
        def __iter__(self):
            for k in range(60):
                yield f"{k:05d}", np.zeros((*SIZE, 3), np.uint8)

    write_label(tmp_path / "m/00000.png", square(3, 1))
    write_label(tmp_path / "m/00030.png", square(5, 20))
    predictor = VideoPredictor(TinyPropagator(), masks=GivenMasks([tmp_path / "m"]))
    held = {}
    tracemalloc.start()
    for k, _ in enumerate(predictor(Endless())):
        if k in (5, 25, 35, 59):
            gc.collect()
            tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
            held[k] = len(tensors), tracemalloc.get_traced_memory()[0]  # the latter: NumPy's too
            del tensors
    tracemalloc.stop()
    frame = 3 * SIZE[0] * SIZE[1]
    for earlier, later in ((5, 25), (35, 59)):
        assert held[later][0] <= held[earlier][0]
        assert held[later][1] - held[earlier][1] < 5 * frame


def test_selected_frames_begin_with_the_first_mask(frames, masks, tmp_path):
    predictor = VideoPredictor(TinyPropagator(), masks=GivenMasks(masks[:1], start=3))
    run(predictor, open_source(frames), writer(tmp_path / "out"), Selection(3, 6))
    assert sorted(p.stem for p in (tmp_path / "out/labels").iterdir()) == [
        "00003",
        "00004",
        "00005",
    ]
    labels = read_label(tmp_path / "out/labels/00005.png")
    np.testing.assert_array_equal(labels, expected()[2])


def test_smaller_work_gives_masks_of_full_size(frames, masks, tmp_path):
    predictor = VideoPredictor(TinyPropagator(), session={"size": 12}, masks=GivenMasks(masks))
    predictions = list(predictor(open_source(frames)))
    assert predictor.model.sessions[-1].maps.shape[1:] == (12, 18)
    assert {p.labels.shape for p in predictions} == {SIZE}
    assert predictions[0].labels.dtype == np.uint8
    assert set(np.unique(predictions[5].labels)) == {0, 3, 5, 9}


def test_video_files_name_their_frames_by_number(masks, tmp_path):
    with VideoWriter(tmp_path / "v.mp4") as video:
        for _ in range(4):
            video.write(np.zeros((*SIZE, 3), np.uint8))
    source = open_source(tmp_path / "v.mp4")
    write_label(tmp_path / "named/000002.png", square(4, 2))
    given = GivenMasks([tmp_path / "named"])
    given.check_names(source)
    labels = [p.labels for p in VideoPredictor(TinyPropagator(), masks=given)(source)]
    assert [set(np.unique(ids)) for ids in labels] == [{0}, {0}, {0, 4}, {0, 4}]
    write_label(tmp_path / "named/2.png", square(4, 2))
    with pytest.raises(InputError, match=r"2\.png belongs to no frame.*'000000', '000001'"):
        GivenMasks([tmp_path / "named"]).check_names(source)
    write_label(tmp_path / "far/000099.png", square(4, 2))
    far = GivenMasks([masks[0], tmp_path / "far"])
    far.check_names(source)
    list(VideoPredictor(TinyPropagator(), masks=far)(source))
    assert [p.name for p in far.unused] == ["000099.png"]


def test_frames_of_a_pipe_are_named_by_number_too(masks, tmp_path):
    frames = np.zeros((3, *SIZE, 3), np.uint8)
    source = open_source("-", raw_size=SIZE, stream=io.BytesIO(frames.tobytes()))
    write_label(tmp_path / "named/000002.png", square(4, 20))
    given = GivenMasks([masks[0], tmp_path / "named"])
    given.check_names(source)
    predictor = VideoPredictor(TinyPropagator(), masks=given)
    run(predictor, source, writer(tmp_path / "out"))
    assert set(np.unique(read_label(tmp_path / "out/labels/000001.png"))) == {0, 3, 9}
    assert set(np.unique(read_label(tmp_path / "out/labels/000002.png"))) == {0, 3, 4, 9}


def test_void_is_no_object_unless_there_is_nothing_else(tmp_path):
    write_label(tmp_path / "a/0.png", square(1, 2) + square(255, 20))
    write_label(tmp_path / "a/1.png", square(255, 2))
    both = GivenMasks([tmp_path / "a"])
    assert set(np.unique(both(0, "0", SIZE))) == {0, 1}
    assert not both(1, "1", SIZE).any()
    write_label(tmp_path / "b.png", square(255, 2))
    assert set(np.unique(GivenMasks([tmp_path / "b.png"])(0, "0", SIZE))) == {0, 255}


def test_masks_of_another_size(tmp_path):
    write_label(tmp_path / "m/0.png", square(1, 2))
    write_label(tmp_path / "m/7.png", square(2, 3, size=(24, 35)))
    with pytest.raises(InputError, match=r"7\.png is 24x35, its frame 24x36.*--resize-masks"):
        GivenMasks([tmp_path / "m"])(0, "0", SIZE)
    given = GivenMasks([tmp_path / "m"], resize=True)
    assert given(0, "0", SIZE).shape == SIZE
    seventh = given(7, "7", SIZE)
    assert seventh.shape == SIZE
    assert set(np.unique(seventh)) == {0, 2}


def test_what_is_given_must_make_sense(frames, masks, tmp_path):
    source = open_source(frames)
    with pytest.raises(InputFileError, match=r"none\.png does not exist"):
        GivenMasks([tmp_path / "none.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputFileError, match=r"empty holds no \*\.png"):
        GivenMasks([tmp_path / "empty"])
    with pytest.raises(InputError, match="both masks of the first frame"):
        GivenMasks([masks[0], masks[0]])
    write_label(tmp_path / "more/00000.png", square(1, 2))
    with pytest.raises(InputError, match="both masks of the first frame"):
        GivenMasks([masks[0], tmp_path / "more"]).check_names(source)
    with pytest.raises(InputError, match="both masks of frame 00004"):
        GivenMasks([masks[1], masks[1]])
    with pytest.raises(InputError, match=r"No mask belongs to the frames.*from 5 on"):
        GivenMasks([masks[1]], start=5).check_names(source)
    with pytest.raises(InputError, match="from 0 on to 4 of"):
        GivenMasks([masks[1]]).check_names(source, 4)
    write_label(tmp_path / "more/cat.png", square(1, 2))
    with pytest.raises(InputError, match=r"cat\.png belongs to no frame.*'00000', '00001'"):
        GivenMasks([tmp_path / "more"]).check_names(source)
    write_label(tmp_path / "zero.png", square(0, 2))
    with pytest.raises(InputError, match="holds no object"):
        GivenMasks([tmp_path / "zero.png"])(0, "00000", SIZE)
    write_label(tmp_path / "many.png", np.arange(24, dtype=np.uint8)[:, None].repeat(36, 1))
    with pytest.raises(InputError, match=r"many\.png"):
        GivenMasks([tmp_path / "many.png"])(0, "00000", SIZE)


def test_identity_follows_names_and_content(masks, tmp_path):
    same = tmp_path / "elsewhere.png"
    same.write_bytes(masks[0].read_bytes())
    assert GivenMasks([masks[0]]).identity() == GivenMasks([same]).identity()
    assert GivenMasks(masks).identity() != GivenMasks([masks[0]]).identity()
    write_label(same, square(3, 2))
    assert GivenMasks([masks[0]]).identity() != GivenMasks([same]).identity()
