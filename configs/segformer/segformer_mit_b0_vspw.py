"""SegFormer B0 on single frames of VSPW, with the data and optimizer recipe of CFFM."""

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import MixTransformer
from vss2.modeling.segformer import SegFormer

dataloader = get_config("common/data/vspw.py").dataloader
dataloader.train.mapper.clip_sampler.offsets = [0]
optimizer = get_config("common/optim.py").segformer_adamw
lr_multiplier = get_config("common/schedule.py").poly_160k
train = get_config("common/train.py").train

model = L(SegFormer)(
    backbone=L(MixTransformer)(size="b0", drop_path_rate=0.1),
    num_classes=124,
    embed_dim=256,
    norm="BN",
    dropout=0.1,
)
train.output_dir = "./output/segformer_mit_b0_vspw"
train.init_checkpoint = "mit_b0.pth"  # ImageNet weights of the backbone, published layout
train.max_iter = 160000
train.eval_period = 16000
train.checkpointer.period = 4000
