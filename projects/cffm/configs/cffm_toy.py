"""CFFM with MiT-B0 from scratch on the toy world: minutes on two CPU cores."""

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import MixTransformer
from vss2.projects.cffm.model import CFFM
from vss2.solver import PolyWarmup

dataloader = get_config("common/data/toy.py").dataloader
optimizer = get_config("common/optim.py").segformer_adamw
train = get_config("common/train.py").train

model = L(CFFM)(
    backbone=L(MixTransformer)(size="b0", drop_path_rate=0.1),
    num_classes=12,
    window=[-9, -6, -3, 0],
    focal_depth=1,
    embed_dim=256,
    norm="BN",
    dropout=0.1,
    frame_loss_weight=0.5,
)
dataloader.train.mapper.clip_sampler.offsets = "${model.window}"
dataloader.train.total_batch_size = 2

# From scratch, backbone and head learn at one rate.
optimizer.lr = 1e-3
optimizer.params.multipliers.head.lr_mult = 1.0
lr_multiplier = L(PolyWarmup)(max_iter=600, power=1.0, warmup_iters=50, warmup_ratio=1e-6)

train.output_dir = "./output/cffm_toy"
train.max_iter = 600
train.seed = 0
train.eval_period = 300
train.checkpointer.period = 200
