"""DAVIS 2017 at 480p: the published recipe of STCN for training, evaluation on the val set.

For training, stages 2 and 3 of STCN add YouTube-VOS, see `youtube_vos.py`.
"""

from omegaconf import OmegaConf

from vss2.d2.config import LazyCall as L
from vss2.data.build import build_test_loader, build_train_loader
from vss2.data.clip_sampling import SkipClipSampler, SkipCurriculum
from vss2.data.transforms import RandomFlip
from vss2.data.vos_mappers import ObjectClipMapper, ObjectFrameMapper
from vss2.data.vos_sampling import ObjectSampler
from vss2.data.vos_transforms import (
    ColorJitter,
    RandomAffine,
    RandomGrayscale,
    RandomResizedCrop,
)
from vss2.evaluation import DAVISEvaluator

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset="davis_2017_train",
    mapper=L(ObjectClipMapper)(
        clip_sampler=L(SkipClipSampler)(
            # The gap between frames grows, and is small again at the end.
            curriculum=L(SkipCurriculum)(
                max_skips=[5, 10, 15, 20, 25, 5],
                fractions=[0.1, 0.2, 0.3, 0.4, 0.9],
                max_iter="${train.max_iter}",
                clips_per_iter="${dataloader.train.total_batch_size}",
                epoch_iters=1,
            ),
            reverse_prob=0.5,
        ),
        augmentations=[
            L(RandomFlip)(prob=0.5),
            L(RandomResizedCrop)(size=[384, 384], scale=[0.36, 1.0], ratio=[3 / 4, 4 / 3]),
            L(ColorJitter)(
                brightness=0.1, contrast=0.03, saturation=0.03, hue=0.0, per_frame=False
            ),
            L(RandomGrayscale)(prob=0.05),
            L(RandomAffine)(
                degrees=15,
                scale=[1.0, 1.0],
                shear=10,
                interpolation="bicubic",
                mask_interpolation="nearest",
                per_frame=True,
            ),
            L(ColorJitter)(
                brightness=0.01, contrast=0.01, saturation=0.01, hue=0.0, per_frame=True
            ),
        ],
        object_sampler=L(ObjectSampler)(max_objects=2, min_area=0, large_area=0, vanished_area=0),
        tries=5,  # draws of frames and augmentation until the first frame holds an object
    ),
    total_batch_size=8,
    num_workers=8,
    seed=None,  # None: that of train.seed
    on_error="error",  # a fault in the data stops the run; "skip" passes over it and lists it
)

dataloader.test = L(build_test_loader)(
    dataset="davis_2017_val",
    mapper=L(ObjectFrameMapper)(single_object=False, max_objects=20),
    batch_size=1,
    num_workers=4,
)

dataloader.evaluator = L(DAVISEvaluator)(
    dataset_name="davis_2017_val",
    output_dir=None,  # None: <train.output_dir>/inference
    task="semi-supervised",
)
