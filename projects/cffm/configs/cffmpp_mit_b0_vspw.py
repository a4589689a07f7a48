"""CFFM++ with MiT-B0 on VSPW, the published recipe: 40,000 iterations on a frozen CFFM.

Prototypes come from the whole video, so these models are not causal.
"""

from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import MixTransformer
from vss2.projects.cffm.model import CFFMPlusPlus
from vss2.solver import PolyWarmup

from .cffm_mit_b0_vspw import dataloader, optimizer, train

model = L(CFFMPlusPlus)(
    backbone=L(MixTransformer)(size="b0", drop_path_rate=0.1),
    num_classes=124,
    window=[-9, -6, -3, 0],
    focal_depth=1,
    embed_dim=256,
    norm="BN",  # frozen with its statistics
    dropout=0.1,
    # Folder or zip with <video>/centers.pt of every video, made from the CFFM below.
    prototypes="./cluster_centers/cffm_mit_b0_vspw",
    drop_path=True,  # of the frozen backbone, as published
)
optimizer.lr = 2e-4
optimizer.params.multipliers.head.lr_mult = 1.0
lr_multiplier = L(PolyWarmup)(max_iter=40000, power=1.0, warmup_iters=1500, warmup_ratio=1e-6)

train.output_dir = "./output/cffmpp_mit_b0_vspw"
train.init_checkpoint = "cffm_mit_b0_vspw.pth"
train.max_iter = 40000
