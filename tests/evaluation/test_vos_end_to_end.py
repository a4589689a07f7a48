"""Data set, loader, model, loop and evaluator together, on one process and on two."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

from tests.inference.tiny_propagator import TinyPropagator
from vss2.d2.data import MetadataCatalog
from vss2.d2.evaluation import inference_on_dataset
from vss2.d2.utils import comm
from vss2.data.build import build_test_loader
from vss2.data.datasets.toy_vos import ToyVOSWorld, load_toy_vos
from vss2.data.image_io import read_image, read_label
from vss2.data.vos_mappers import ObjectFrameMapper
from vss2.engine.launch import launch
from vss2.errors import InputError
from vss2.evaluation import DAVISEvaluator, YouTubeVOSExporter, score_davis

SET = "vos_end_to_end_test"
WORLD = ToyVOSWorld(
    num_davis_train=1,
    num_davis_val=3,
    num_youtube_train=1,
    num_youtube_valid=3,
    size=(64, 96),
    davis_frames=(5, 7),
    youtube_frames=16,
)


def register():
    MetadataCatalog.get(SET).set(
        meta_file=f"{WORLD.name}/YouTube/valid/meta.json",
        train_meta_file=f"{WORLD.name}/YouTube/train/meta.json",
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The function that gives the video dicts of a part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VSS2_DATASETS", str(tmp_path_factory.mktemp("datasets")))
        register()
        yield lambda part: load_toy_vos(part, WORLD)
    MetadataCatalog.remove(SET)


def evaluate(videos, evaluator):
    loader = build_test_loader(dataset=videos, mapper=ObjectFrameMapper())
    return inference_on_dataset(TinyPropagator(), loader, evaluator).get("vos", {})


def test_davis(world, tmp_path):
    videos = world("davis_val")
    result = evaluate(videos, DAVISEvaluator(SET, output_dir=tmp_path))
    written = [
        (
            video["video_id"],
            [read_label(frame["label_file"]) for frame in video["frames"]],
            [
                read_label(tmp_path / video["video_id"] / f"{index:05d}.png")
                for index in range(len(video["frames"]))
            ],
        )
        for video in videos
    ]
    for _, truth, masks in written:
        np.testing.assert_array_equal(masks[0], truth[0])  # the given mask
    assert result["J&F"] == 100 * score_davis(written)["J&F-Mean"]
    assert 0 < result["J&F"] < 100


def test_youtube_vos_at_full_rate(world, tmp_path):
    videos = world("youtube_valid_all_frames")
    result = evaluate(videos, YouTubeVOSExporter(SET, output_dir=tmp_path))
    assert 0 < result["J"] < 100
    assert "overall" in result
    required = [
        f"Annotations/{video['video_id']}/{frame['file_name'].split('/')[-1][:-4]}.png"
        for video in videos
        for frame in video["frames"]
        if frame["required"]
    ]
    assert len(required) < sum(len(video["frames"]) for video in videos)
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == sorted(required)
    for video in videos:
        size = read_image(video["frames"][0]["file_name"]).shape[:2]
        seen: set[int] = set()
        for frame in video["frames"]:
            if frame["mask_file"]:
                seen |= set(np.unique(read_label(frame["mask_file"])).tolist())
            if frame["required"]:
                name = frame["file_name"].split("/")[-1][:-4]
                mask = read_label(tmp_path / "Annotations" / video["video_id"] / f"{name}.png")
                assert mask.shape == size
                assert set(np.unique(mask).tolist()) <= seen


def _evaluators(folder):
    return {
        "davis_val": DAVISEvaluator(SET, output_dir=folder / "davis"),
        "youtube_valid_all_frames": YouTubeVOSExporter(SET, output_dir=folder / "youtube"),
    }


def _rank(root):
    """Evaluates its share; then both ranks have the same video, then rank 1 loses an answer."""
    rank = comm.get_rank()
    register()
    found = {
        part: dict(evaluate(load_toy_vos(part, WORLD), evaluator))
        for part, evaluator in _evaluators(root / "two").items()
    }
    errors = []
    for evaluator in (DAVISEvaluator(SET), YouTubeVOSExporter(SET)):
        for video, lose in (("a", 0), ("ab"[rank], rank)):
            evaluator.reset()
            item = {"video_id": video, "frame_index": 0, "last_frame": True}
            answer = item | {"mask": torch.zeros(2, 2), "label_file": None, "file_name": "0.jpg"}
            evaluator.process([item], [] if lose else [answer])
            try:
                evaluator.evaluate()
            except InputError as error:
                errors.append(str(error))
    torch.save({"found": found, "errors": errors}, root / f"{rank}.pt")


def test_two_ranks_evaluate_as_one(world, tmp_path, monkeypatch):
    alone = {
        part: dict(evaluate(world(part), evaluator))
        for part, evaluator in _evaluators(tmp_path / "one").items()
    }
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch(_rank, (tmp_path,), num_gpus=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for part, scores in alone.items():
        assert list(first["found"][part]) == list(scores)
        np.testing.assert_array_equal(list(first["found"][part].values()), list(scores.values()))
    assert set(second["found"]) == set(alone)
    assert not any(second["found"].values())
    assert first["errors"] == second["errors"]
    twice = "Video 'a' was evaluated by 2 processes; every video must be on exactly one."
    lost = "Video 'b': the answer to frame 0 is missing (1 in all)."
    assert first["errors"] == [twice, lost, twice, lost]
    one, two = (
        {f.relative_to(tmp_path / n): f for f in _files(tmp_path / n)} for n in ("one", "two")
    )
    assert set(one) == set(two)
    assert all(file.read_bytes() == two[name].read_bytes() for name, file in one.items())


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]
