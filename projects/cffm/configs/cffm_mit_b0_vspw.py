"""CFFM with MiT-B0 on VSPW, the published recipe: 160,000 iterations of 8 clips."""

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import MixTransformer
from vss2.projects.cffm.model import CFFM

dataloader = get_config("common/data/vspw.py").dataloader
optimizer = get_config("common/optim.py").segformer_adamw
lr_multiplier = get_config("common/schedule.py").poly_160k
train = get_config("common/train.py").train

model = L(CFFM)(
    backbone=L(MixTransformer)(size="b0", drop_path_rate=0.1),
    num_classes=124,
    # The data follow: dataloader.train.mapper.clip_sampler.offsets.
    window=[-9, -6, -3, 0],
    focal_depth=1,
    embed_dim=256,
    norm="SyncBN",  # on one process the same as "BN"; several without GPUs need "BN"
    dropout=0.1,
    frame_loss_weight=0.5,
)
dataloader.train.mapper.clip_sampler.offsets = "${model.window}"

train.output_dir = "./output/cffm_mit_b0_vspw"
train.init_checkpoint = "mit_b0.pth"  # ImageNet weights of the backbone, published layout
train.max_iter = 160000
train.eval_period = 0  # at the end alone, as published
train.checkpointer.period = 4000
