"""VSPW at 480p as the published CFFM and MRCFA recipes use it.

A method that trains on single images sets `clip_sampler.offsets=[0]`.
"""

from omegaconf import OmegaConf

from vss2.d2.config import LazyCall as L
from vss2.data.build import build_test_loader, build_train_loader
from vss2.data.clip_sampling import OffsetClipSampler
from vss2.data.mappers import ClipTrainMapper, FrameTestMapper
from vss2.data.transforms import (
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    TestResize,
)
from vss2.evaluation import VSSEvaluator

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset="vspw_train",
    mapper=L(ClipTrainMapper)(
        clip_sampler=L(OffsetClipSampler)(offsets=[-9, -6, -3, 0], reverse_prob=0.5),
        augmentations=[
            L(RandomResize)(scale=[853, 480], ratio_range=[0.5, 2.0]),
            L(RandomCrop)(size=[480, 480], max_category_ratio=0.75, tries=10),
            L(RandomFlip)(prob=0.5),
            L(PhotoMetricDistortion)(
                brightness_delta=32,
                contrast_range=[0.5, 1.5],
                saturation_range=[0.5, 1.5],
                hue_delta=18,
            ),
        ],
        pad_size=[480, 480],
        num_classes=124,
        stray_labels="void",  # ids that the data set does not define; or "error"
    ),
    total_batch_size=8,
    num_workers=4,
    seed=None,  # None: that of train.seed
    on_error="error",  # a fault in the data stops the run; "skip" passes over it and lists it
)

dataloader.test = L(build_test_loader)(
    dataset="vspw_val",
    mapper=L(FrameTestMapper)(resize=L(TestResize)(scale=[853, 480], size_divisor=32)),
    batch_size=1,
    num_workers=4,
)

dataloader.evaluator = L(VSSEvaluator)(
    dataset_name="vspw_val",
    output_dir=None,  # None: <train.output_dir>/inference
    min_frames=17,
    drop_last_window=True,
    reduce=True,
)
