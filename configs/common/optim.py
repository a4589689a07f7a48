"""Optimizers. The training tool fills `params.model`."""

import torch

from vss2.d2.config import LazyCall as L
from vss2.solver import get_param_groups, get_param_groups_by_module

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

# The recipe of Mask2Former: backbone x0.1, no decay on norms and embeddings.
mask2former_adamw = L(torch.optim.AdamW)(
    params=L(get_param_groups_by_module)(
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        lr_mults={"backbone": 0.1},
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.05,
)
