"""The toy world at its own size, 96x128, on single images; it makes itself at first use.

A method that trains on clips sets `clip_sampler.offsets`.
"""

from vss2.d2.config import LazyCall as L
from vss2.data.transforms import (
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    TestResize,
)

from .vspw import dataloader

dataloader.train.dataset = "toy_train"
dataloader.train.num_workers = 2
dataloader.train.mapper.num_classes = 12
dataloader.train.mapper.pad_size = [96, 128]
dataloader.train.mapper.clip_sampler.offsets = [0]
dataloader.train.mapper.augmentations = [
    L(RandomResize)(scale=[128, 96], ratio_range=[0.75, 1.5]),
    L(RandomCrop)(size=[96, 128], max_category_ratio=0.9, tries=10),
    L(RandomFlip)(prob=0.5),
    # No change of hue or saturation: the classes differ by them.
    L(PhotoMetricDistortion)(
        brightness_delta=16, contrast_range=[0.8, 1.2], saturation_range=[1.0, 1.0], hue_delta=0
    ),
]

dataloader.test.dataset = "toy_val"
dataloader.test.num_workers = 2
dataloader.test.mapper.resize = L(TestResize)(scale=[128, 96], size_divisor=32)
dataloader.evaluator.dataset_name = "toy_val"
