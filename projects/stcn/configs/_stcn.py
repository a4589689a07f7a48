"""What the published models of STCN share: network, optimizer and the settings of a run."""

import torch

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import ResNet
from vss2.projects.stcn.model import STCN
from vss2.solver import get_param_groups

model = L(STCN)(
    key_encoder=L(ResNet)(
        depth=50, strides=[1, 2, 2], stem_channels=64, stage_names=["res2", "layer2", "layer3"]
    ),
    value_encoder_depth=18,
    value_encoder_stem=64,
    key_dim=64,
    value_dim=512,
    single_object=False,
    freeze_norm=True,
    bootstrap_start=20000,
    bootstrap_end=70000,
    bootstrap_fraction=0.15,
    session=dict(protocol="davis", mem_every=5, top_k=20, include_last=False),
)

# Coupled weight decay on everything, one group.
optimizer = L(torch.optim.Adam)(
    params=L(get_param_groups)(base_lr="${..lr}", weight_decay="${..weight_decay}", multipliers={}),
    lr=1e-5,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-7,
)

train = get_config("common/train.py").train
train.seed = 14159265
train.amp = dict(enabled=True, dtype="fp16")
train.sync_bn = False  # batch norm is frozen
train.eval_period = 0
train.log_period = 100
train.checkpointer.period = 50000
