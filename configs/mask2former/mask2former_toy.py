"""Mask2Former with a MiT-B0 and small decoders from scratch on the toy world."""

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import MixTransformer
from vss2.modeling.criterion import MaskCriterion, PointSampler
from vss2.modeling.mask2former import Mask2Former
from vss2.modeling.matcher import HungarianMatcher
from vss2.solver import PolyWarmup

dataloader = get_config("common/data/toy.py").dataloader
optimizer = get_config("common/optim.py").mask2former_adamw
train = get_config("common/train.py").train

model = L(Mask2Former)(
    backbone=L(MixTransformer)(size="b0", drop_path_rate=0.1),
    num_classes=12,
    clip_length=None,
    num_queries=24,
    hidden_dim=64,
    num_heads=4,
    encoder_layers=2,
    encoder_feedforward=256,
    decoder_layers=3,
    decoder_feedforward=256,
    fast_attention_masks=False,
    criterion=L(MaskCriterion)(
        num_classes="${..num_classes}",
        matcher=L(HungarianMatcher)(
            class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=768
        ),
        points=L(PointSampler)(num_points=768, oversample_ratio=3.0, importance_ratio=0.75),
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        no_object_weight=0.1,
    ),
)
# From scratch, backbone and decoders learn at one rate.
optimizer.lr = 1e-3
optimizer.params.lr_mults.backbone = 1.0
lr_multiplier = L(PolyWarmup)(max_iter=600, power=0.9, warmup_iters=50, warmup_ratio=1e-6)

train.output_dir = "./output/mask2former_toy"
train.max_iter = 600
train.seed = 0
train.clip_grad.enabled = True
train.clip_grad.max_norm = 1.0
train.eval_period = 300
train.checkpointer.period = 200
