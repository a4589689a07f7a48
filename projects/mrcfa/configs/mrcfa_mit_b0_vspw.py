"""MRCFA B0 on VSPW at 480p with the published recipe."""

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import MixTransformer
from vss2.projects.mrcfa import MRCFA

dataloader = get_config("common/data/vspw.py").dataloader
dataloader.train.mapper.clip_sampler.offsets = "${model.window}"
optimizer = get_config("common/optim.py").segformer_adamw
lr_multiplier = get_config("common/schedule.py").poly_160k
train = get_config("common/train.py").train

model = L(MRCFA)(
    backbone=L(MixTransformer)(size="b0", drop_path_rate=0.1),
    num_classes=124,
    window=[-9, -6, -3, 0],
    start_table=None,  # None: the published clips of frames 3 to 8
    keep_ratio=0.8,
    score_top_k=5,
    refinement_layers=1,
    embed_dim=256,
    norm="BN",  # published: SyncBN, which several GPUs get by train.sync_bn
    dropout=0.1,
    frame_loss_weight=0.5,
)
train.output_dir = "./output/mrcfa_mit_b0_vspw"
train.init_checkpoint = "mit_b0.pth"  # ImageNet weights of the backbone, published layout
train.max_iter = 160000
train.eval_period = 0  # published: once, at the end
train.checkpointer.period = 4000
