"""Static images as clips of three frames: the published recipe of STCN's stage 0; training only."""

from omegaconf import OmegaConf

from vss2.d2.config import LazyCall as L
from vss2.data.build import build_train_loader
from vss2.data.thin_plate import ThinPlateWarp
from vss2.data.transforms import RandomFlip
from vss2.data.vos_mappers import StaticClipMapper
from vss2.data.vos_transforms import (
    ColorJitter,
    RandomAffine,
    RandomFrameCrop,
    RandomGrayscale,
    RepeatFrame,
    ResizeShorterSide,
)

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=[
        "static_fss",
        "static_duts_tr",
        "static_duts_te",
        "static_ecssd",
        *["static_big", "static_hrsod"] * 5,
    ],
    mapper=L(StaticClipMapper)(
        augmentations=[
            L(RandomAffine)(
                degrees=0,
                scale=[0.8, 1.5],
                shear=0,
                interpolation="nearest",
                mask_interpolation="nearest",
                per_frame=False,
            ),
            L(RandomFlip)(prob=0.5),
            L(ColorJitter)(
                brightness=0.1, contrast=0.05, saturation=0.05, hue=0.05, per_frame=False
            ),
            L(RandomGrayscale)(prob=0.05),
            L(RepeatFrame)(count=3),
            L(RandomAffine)(
                degrees=20,
                scale=[0.9, 1.1],
                shear=10,
                interpolation="bicubic",
                mask_interpolation="bicubic",  # masks become soft, as published
                per_frame=True,
            ),
            L(ResizeShorterSide)(size=384),
            L(RandomFrameCrop)(size=[384, 384]),
            L(ColorJitter)(brightness=0.1, contrast=0.05, saturation=0.05, hue=0.0, per_frame=True),
            L(ThinPlateWarp)(prob=0.33, points=12, std=0.02),
        ],
    ),
    total_batch_size=16,
    num_workers=8,
    seed=None,  # None: that of train.seed
    on_error="error",  # a fault in the data stops the run; "skip" passes over it and lists it
)
