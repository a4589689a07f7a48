"""Cityscapes video: layout, sparse labels from sampling to scores, its config end to end."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.d2.data import MetadataCatalog
from vss2.data.build import build_test_loader, build_train_loader, get_video_dicts
from vss2.data.clip_sampling import LabelledClipSampler
from vss2.data.datasets.cityscapes import CLASSES, LABELLED_INDEX, load_cityscapes_video
from vss2.data.doctor import check_dataset
from vss2.data.image_io import read_label, write_image, write_label
from vss2.data.labels import class_ids
from vss2.data.mappers import ClipTrainMapper, FrameTestMapper
from vss2.engine import complete_config, do_train, setup
from vss2.errors import InputError, InputFileError
from vss2.evaluation import VSSEvaluator

SIZE = (32, 64)
# (split, city, sequence, labelled frame, kind of label file). Two snippets share a sequence number.
SNIPPETS = (
    ("train", "aachen", 0, 19, "labelTrainIds"),
    ("train", "hamburg", 0, 42, "labelIds"),
    ("train", "hamburg", 0, 90, "labelIds"),
    ("val", "munster", 3, 19, "labelTrainIds"),
)
FULL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def label_file(root: Path, split: str, city: str, seq: int, frame: int, kind: str) -> Path:
    return root / "gtFine" / split / city / f"{city}_{seq:06d}_{frame:06d}_gtFine_{kind}.png"


def image_file(root: Path, split: str, city: str, seq: int, frame: int) -> Path:
    folder = root / "leftImg8bit_sequence" / split / city
    return folder / f"{city}_{seq:06d}_{frame:06d}_leftImg8bit.png"


@pytest.fixture
def cityscapes(tmp_path, monkeypatch):
    """Root of a generated set in Cityscapes' layout; the blue channel is the frame's number."""
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    root = tmp_path / "cityscapes"
    rng = np.random.default_rng(0)
    for split, city, seq, labelled, kind in SNIPPETS:
        for frame in range(labelled - 19, labelled + 11):
            image = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
            image[..., 2] = frame
            write_image(image_file(root, split, city, seq, frame), image)
        ids = FULL_IDS + [0, 4, 30] if kind == "labelIds" else [*range(19), 255]
        coarse = rng.choice(np.array(ids, np.uint8), (4, 8))
        label = np.kron(coarse, np.ones((8, 8), np.uint8))
        write_label(label_file(root, split, city, seq, labelled, kind), label)
    return root


def test_a_snippet_is_found_by_its_label(cityscapes):
    videos = load_cityscapes_video(cityscapes, "train")
    assert [v["video_id"] for v in videos] == [
        "aachen_000000_000019",
        "hamburg_000000_000042",
        "hamburg_000000_000090",
    ]
    for video, (split, city, seq, labelled, kind) in zip(videos, SNIPPETS, strict=False):
        assert [f["frame_index"] for f in video["frames"]] == list(range(30))
        names = [f["file_name"] for f in video["frames"]]
        assert names[0] == str(image_file(cityscapes, split, city, seq, labelled - 19))
        assert names[-1] == str(image_file(cityscapes, split, city, seq, labelled + 10))
        labels = {i: f["label_file"] for i, f in enumerate(video["frames"]) if f["label_file"]}
        assert labels == {19: str(label_file(cityscapes, split, city, seq, labelled, kind))}


def test_train_ids_win_where_both_kinds_are_there(cityscapes):
    write_label(label_file(cityscapes, *SNIPPETS[0][:4], "labelIds"), np.zeros(SIZE, np.uint8))
    video = load_cityscapes_video(cityscapes, "train")[0]
    assert video["frames"][19]["label_file"].endswith("_labelTrainIds.png")


def test_the_sets_are_registered_with_their_classes(cityscapes):
    metadata = MetadataCatalog.get("cityscapes_video_val")
    assert len(metadata.stuff_classes) == len(metadata.stuff_colors) == len(CLASSES) == 19
    assert (metadata.stuff_classes[0], metadata.stuff_colors[0]) == ("road", (128, 64, 128))
    assert (metadata.stuff_classes[18], metadata.stuff_colors[18]) == ("bicycle", (119, 11, 32))
    assert metadata.label_mapping == "cityscapes"
    assert len(get_video_dicts("cityscapes_video_train")) == 3
    assert len(get_video_dicts("cityscapes_video_val")) == 1
    assert check_dataset("cityscapes_video_train", num_workers=0).findings == []


def test_faults_of_the_layout_are_named(cityscapes, tmp_path):
    with pytest.raises(InputError, match="no split 'test'"):
        load_cityscapes_video(cityscapes, "test")
    with pytest.raises(InputFileError, match=r"leftImg8bit_sequence.* does not exist"):
        load_cityscapes_video(tmp_path, "train")
    missing = image_file(cityscapes, "train", "hamburg", 0, 30)
    missing.unlink()
    with pytest.raises(InputFileError, match=f"not whole: frame 7 of 30, {missing}"):
        load_cityscapes_video(cityscapes, "train")
    report = check_dataset("cityscapes_video_train", num_workers=0)
    assert report.counts() == {"snippet_incomplete": 1}
    assert report.videos == 2
    (cityscapes / "leftImg8bit_sequence/val/munster").rename(tmp_path / "munster")
    with pytest.raises(InputFileError, match="frame 0 of 30"):
        load_cityscapes_video(cityscapes, "val")
    for file in (cityscapes / "gtFine/val/munster").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no label files"):
        load_cityscapes_video(cityscapes, "val")


def test_ids_out_of_range_are_found_in_both_kinds(cityscapes):
    for snippet, value in zip(SNIPPETS[:2], (19, 34), strict=True):
        path = label_file(cityscapes, *snippet)
        label = read_label(path)
        label[:8, :8] = value
        write_label(path, label)
    report = check_dataset("cityscapes_video_train", num_workers=0)
    assert report.counts() == {"label_off_by_one": 2}


def test_samples_hold_train_ids_of_the_labelled_target(cityscapes):
    sampler = LabelledClipSampler(offsets=(-9, -6, -3, 0), reverse_prob=0.5)
    mapper = ClipTrainMapper(sampler, [], pad_size=SIZE, num_classes=19)
    loader = build_train_loader(
        dataset="cityscapes_video_train", mapper=mapper, total_batch_size=3, seed=0
    )
    directions = Counter()
    for _, batch in zip(range(6), loader, strict=False):
        for sample in batch:
            assert sample["labelled"].tolist() == [False, False, False, True]
            steps = np.diff(sample["frame_indices"])
            assert sample["frame_indices"][-1] == LABELLED_INDEX
            assert set(steps) in ({3}, {-3})
            directions[int(steps[0])] += 1
            assert (sample["sem_seg"][:3] == 255).all()
            _, city, seq, labelled, kind = next(
                s for s in SNIPPETS if sample["video_id"].endswith(f"{s[1]}_{s[2]:06d}_{s[3]:06d}")
            )
            path = label_file(cityscapes, "train", city, seq, labelled, kind)
            raw = read_label(path)
            if kind == "labelIds":
                expected = np.full(SIZE, 255)
                for train_id, full_id in enumerate(FULL_IDS):
                    expected[raw == full_id] = train_id
            else:
                expected = raw
            assert np.array_equal(sample["sem_seg"][3].numpy(), expected)
    assert sorted(directions) == [-3, 3]
    assert min(directions.values()) > 2


def test_only_labelled_frames_are_scored(cityscapes):
    """Answers that equal the labels give 100 %, however the labels are stored."""
    evaluator = VSSEvaluator("cityscapes_video_train")
    loader = build_test_loader(dataset="cityscapes_video_train", mapper=FrameTestMapper())
    count = 0
    for (item,) in loader:
        labels = np.zeros(SIZE, np.uint8)
        if item["label_file"]:
            ids = class_ids(read_label(item["label_file"]), "cityscapes", item["label_file"])
            labels = np.where(ids == 255, 5, ids)
        answer = {k: item[k] for k in ("video_id", "frame_index", "label_file")}
        evaluator.process([item], [answer | {"labels": torch.as_tensor(labels)}])
        count += 1
    scores = evaluator.evaluate()["sem_seg"]
    assert count == 90
    assert scores["mIoU"] == scores["aAcc"] == 100.0
    stored = VSSEvaluator("cityscapes_video_train", reduce=False)
    assert not stored._maps_labels


def small(cfg, tmp_path):
    """The config with frames of 32x64 and a small head, for two iterations on one process."""
    train = cfg.dataloader.train
    cfg.model.backbone.size = "b0"
    cfg.model.embed_dim = 16
    train.mapper.pad_size = list(SIZE)
    train.mapper.augmentations[0].scale = train_scale = [SIZE[1], SIZE[0]]
    train.mapper.augmentations[1].size = list(SIZE)
    cfg.dataloader.test.mapper.resize.scale = train_scale
    train.num_workers = cfg.dataloader.test.num_workers = 0
    train.total_batch_size = 2
    cfg.train.update(
        output_dir=str(tmp_path / "run"), init_checkpoint="", max_iter=2, device="cpu", seed=0
    )
    cfg.train.tensorboard = False
    return complete_config(cfg)


def test_the_config_trains_and_is_evaluated(cityscapes, tmp_path):
    cfg = load_config("segformer/segformer_mit_b1_cityscapes")
    assert cfg.model.num_classes == 19
    assert cfg.model.backbone.size == "b1"
    assert list(cfg.dataloader.test.mapper.resize.scale) == [1024, 512]
    cfg = small(cfg, tmp_path)
    setup(cfg)
    results = do_train(cfg)
    assert 0 <= results["sem_seg"]["aAcc"] <= 100
    metrics = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    assert all(np.isfinite(json.loads(line).get("total_loss", 0)) for line in metrics)
    assert (tmp_path / "run" / "model_final.pth").is_file()
    loader = instantiate(cfg.dataloader.test)
    assert len(loader) == 30
