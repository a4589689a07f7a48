"""THE-Mask with MiT-B0 on clips of two frames of VSPW: stage 2, the published recipe."""

from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import MixTransformer
from vss2.projects.themask import THEMask

from .themask_1f_mit_b0_vspw import dataloader, lr_multiplier, optimizer, train
from .themask_1f_mit_b0_vspw import model as stage1

dataloader.train.mapper.clip_sampler.offsets = [-3, 0]  # [-9, -6, -3, 0]: clips of four frames

criterion = stage1.criterion
criterion.matcher.second_cost = "full"
criterion.frame_weight = 0.25

model = L(THEMask)(
    backbone=L(MixTransformer)(size="b0", drop_path_rate=0.1),
    num_classes=124,
    criterion=criterion,
    freeze_encoder=True,
    stage1_start="random",  # published; "copied" keeps the norm that the heads were trained with
    dropout=0.1,
    num_queries=100,
    hidden_dim=256,
    num_heads=8,
    encoder_layers=6,
    encoder_feedforward=1024,
    decoder_layers=9,
    decoder_feedforward=2048,
    fast_attention_masks=False,
    clip_length=2,  # at test: 1, 2 and 4 are published, any other works
    causal=False,  # True: every frame at once, by the clip (t-3, t)
    softmax_scores=False,  # True: as in the release, at a cost; labels differ in ties alone
)
lr_multiplier.max_iter = 12000

train.output_dir = "./output/themask_mit_b0_vspw"
train.init_checkpoint = "themask_1f_mit_b0_vspw.pth"  # of stage 1
train.max_iter = 12000
train.checkpointer.period = 500
