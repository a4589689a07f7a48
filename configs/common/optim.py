"""Optimizers. The training tool fills `params.model`."""

import torch

from vss2.d2.config import LazyCall as L
from vss2.solver import get_param_groups

# The recipe of SegFormer, CFFM and MRCFA: head x10, no decay on the backbone's norms. Norms inside
# `decode_head` match "head" and keep their decay, as published.
segformer_adamw = L(torch.optim.AdamW)(
    params=L(get_param_groups)(
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        multipliers={"head": {"lr_mult": 10.0}, "norm": {"decay_mult": 0.0}},
    ),
    lr=6e-5,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.01,
)
