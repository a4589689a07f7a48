from __future__ import annotations

import torch

from vss2.config import get_config
from vss2.d2.config import instantiate
from vss2.data.transforms import PhotoMetricDistortion, RandomCrop, RandomFlip, RandomResize
from vss2.evaluation import VSSEvaluator


def test_the_recipe_shows_the_published_constants():
    dataloader = get_config("common/data/vspw.py").dataloader
    mapper = dataloader.train.mapper
    assert list(mapper.clip_sampler.offsets) == [-9, -6, -3, 0]
    resize, crop, flip, colour = mapper.augmentations
    assert (list(resize.scale), list(resize.ratio_range)) == ([853, 480], [0.5, 2.0])
    assert (list(crop.size), crop.max_category_ratio, crop.tries) == ([480, 480], 0.75, 10)
    assert flip.prob == 0.5
    assert (colour.brightness_delta, colour.hue_delta) == (32, 18)
    assert list(colour.contrast_range) == list(colour.saturation_range) == [0.5, 1.5]
    assert dataloader.train.total_batch_size == 8
    built = [type(step) for step in instantiate(mapper).augmentations]
    assert built == [RandomResize, RandomCrop, RandomFlip, PhotoMetricDistortion]


def test_loaders_and_evaluator_are_built_from_the_config(make_vspw, monkeypatch):
    root = make_vspw({"a": 10, "b": 11}, split="train", size=(48, 85))
    make_vspw({"c": 2}, split="val", size=(48, 85))
    monkeypatch.setenv("VSS2_DATASETS", str(root.parent))
    dataloader = get_config("common/data/vspw.py").dataloader
    dataloader.train.num_workers = dataloader.test.num_workers = 0
    dataloader.train.total_batch_size = 1
    dataloader.train.seed = 0
    (sample,) = next(iter(instantiate(dataloader.train)))
    assert sample["frames"].shape == (4, 3, 480, 480)
    assert sample["sem_seg"].shape == (4, 480, 480)
    items = [item for batch in instantiate(dataloader.test) for item in batch]
    assert [item["frame"].shape for item in items] == [torch.Size([3, 480, 864])] * 2
    assert (items[0]["height"], items[0]["width"]) == (48, 85)
    assert isinstance(instantiate(dataloader.evaluator), VSSEvaluator)


def test_single_images_by_one_override(make_vspw, monkeypatch):
    monkeypatch.setenv("VSS2_DATASETS", str(make_vspw({"one": 1}).parent))
    train = get_config("common/data/vspw.py").dataloader.train
    train.update(num_workers=0, total_batch_size=1)
    train.mapper.clip_sampler.offsets = [0]
    (sample,) = next(iter(instantiate(train)))
    assert sample["frames"].shape == (1, 3, 480, 480)
    assert sample["frame_indices"] == [0]
