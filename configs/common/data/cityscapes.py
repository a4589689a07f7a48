"""Cityscapes video at half size, 512x1024, on single images; the values are ours.

One frame of a 30-frame snippet is labelled: it is the target of every training clip and the only
one that is scored, while all frames pass the session. Scores are resized to the stored 1024x2048
before they are judged. For full size set the scales to [2048, 1024] and crop and pad as memory
allows. A method that trains on clips sets `clip_sampler.offsets`.
"""

from vss2.d2.config import LazyCall as L
from vss2.data.clip_sampling import LabelledClipSampler
from vss2.data.transforms import (
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    TestResize,
)

from .vspw import dataloader

dataloader.train.dataset = "cityscapes_video_train"
dataloader.train.mapper.num_classes = 19
dataloader.train.mapper.pad_size = [512, 1024]
dataloader.train.mapper.clip_sampler = L(LabelledClipSampler)(offsets=[0], reverse_prob=0.5)
dataloader.train.mapper.augmentations = [
    L(RandomResize)(scale=[1024, 512], ratio_range=[0.5, 2.0]),
    L(RandomCrop)(size=[512, 1024], max_category_ratio=0.75, tries=10),
    L(RandomFlip)(prob=0.5),
    L(PhotoMetricDistortion)(
        brightness_delta=32,
        contrast_range=[0.5, 1.5],
        saturation_range=[0.5, 1.5],
        hue_delta=18,
    ),
]

dataloader.test.dataset = "cityscapes_video_val"
dataloader.test.mapper.resize = L(TestResize)(scale=[1024, 512], size_divisor=32)
dataloader.evaluator.dataset_name = "cityscapes_video_val"
