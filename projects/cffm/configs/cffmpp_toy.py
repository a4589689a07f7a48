"""CFFM++ on the toy world, on top of `cffm_toy`: a minute on two CPU cores.

Train `cffm/cffm_toy` first and make the prototypes of its videos with `vss2 cffm prototypes`.
"""

from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import MixTransformer
from vss2.projects.cffm.model import CFFMPlusPlus
from vss2.solver import PolyWarmup

from .cffm_toy import dataloader, optimizer, train

model = L(CFFMPlusPlus)(
    backbone=L(MixTransformer)(size="b0", drop_path_rate=0.1),
    num_classes=12,
    window=[-9, -6, -3, 0],
    focal_depth=1,
    embed_dim=256,
    norm="BN",  # frozen with its statistics
    dropout=0.1,
    prototypes="./output/cffm_toy/prototypes",
    drop_path=True,
)
lr_multiplier = L(PolyWarmup)(max_iter=200, power=1.0, warmup_iters=20, warmup_ratio=1e-6)

train.output_dir = "./output/cffmpp_toy"
train.init_checkpoint = "./output/cffm_toy/model_final.pth"
train.max_iter = 200
train.eval_period = 100
