"""Training of the fine-grained encoder on YouTube-VOS frames, evaluated on DAVIS 2017 val.

20 epochs of 2856 steps: 80 frames of each video, 96 in a batch. The frame list `ytvos.csv` is made
by `vss2 data ytvos-index` where it is not there.
"""

import torch

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.projects.sfc import (
    FineGrainedCorrespondence,
    FrameEncoder,
    TwoCropMapper,
    build_frame_loader,
)
from vss2.solver import PolyWarmup, get_param_groups

dataloader = get_config("common/data/davis.py").dataloader
train = get_config("common/train.py").train

dataloader.train = L(build_frame_loader)(
    dataset="youtube_vos_2018_train_all_frames",
    mapper=L(TwoCropMapper)(size=256, scale=[0.0, 1.0], ratio=[3 / 4, 4 / 3]),
    total_batch_size=96,
    clip_len=1,
    frame_rate=30,
    clips_per_video=80,
    num_workers=8,
    seed=None,  # None: that of train.seed
    on_error="error",  # a fault in the data stops the run; "skip" passes over it and lists it
)

model = L(FineGrainedCorrespondence)(
    encoder=L(FrameEncoder)(depth=18, padding_mode="zeros", num_stages=4),
    total_steps="${train.max_iter}",
    projection_dim=256,
    hidden_dim=2048,
    momentum=0.99,
    pos_radius=0.5,
    bn_warmup=True,
    session=dict(
        context=20,
        radius=12,
        top_k=10,
        temperature=0.05,
        long_mem=[0],
        norm_mask=False,
    ),
)

optimizer = L(torch.optim.Adam)(
    params=L(get_param_groups)(base_lr="${..lr}", weight_decay="${..weight_decay}", multipliers={}),
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
)

lr_multiplier = L(PolyWarmup)(max_iter=57120, power=0.0, warmup_iters=0)  # constant

train.max_iter = 57120
train.seed = 777
train.eval_period = 28560
train.checkpointer.period = 2856
train.log_period = 10
