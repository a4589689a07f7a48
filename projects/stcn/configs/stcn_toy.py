"""STCN with narrow encoders from scratch on the toy world: minutes on two CPU cores."""

import torch

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import ResNet
from vss2.projects.stcn.model import STCN
from vss2.solver import PolyWarmup, get_param_groups

dataloader = get_config("common/data/toy_vos.py").dataloader
train = get_config("common/train.py").train

model = L(STCN)(
    key_encoder=L(ResNet)(
        depth=18,
        strides=[1, 2, 2],
        stem_channels=24,
        stage_names=["res2", "layer2", "layer3"],
    ),
    value_encoder_depth=18,
    value_encoder_stem=24,
    key_dim=64,
    value_dim=64,
    single_object=False,
    freeze_norm=False,  # nothing is pretrained: batch norm learns
    bootstrap_start=600,
    bootstrap_end=1800,
    bootstrap_fraction=0.3,
    session=dict(protocol="davis", mem_every=5, top_k=20, include_last=False),
)
optimizer = L(torch.optim.Adam)(
    params=L(get_param_groups)(base_lr="${..lr}", weight_decay="${..weight_decay}", multipliers={}),
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-7,
)
lr_multiplier = L(PolyWarmup)(max_iter=2400, power=1.0, warmup_iters=50, warmup_ratio=1e-6)
dataloader.train.total_batch_size = 4

train.output_dir = "./output/stcn_toy"
train.max_iter = 2400
train.seed = 0
train.eval_period = 1200
train.checkpointer.period = 600
