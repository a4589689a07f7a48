"""Mask2Former with a MiT-B1 on single frames of VSPW.

The release has no VSPW recipe. This is the first stage of THE-Mask's, which is Mask2Former, but for
the code of time and the parameters without decay, which are Mask2Former's.
"""

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import MixTransformer
from vss2.modeling.criterion import MaskCriterion, PointSampler
from vss2.modeling.mask2former import Mask2Former
from vss2.modeling.matcher import HungarianMatcher
from vss2.solver import PolyWarmup

dataloader = get_config("common/data/vspw.py").dataloader
dataloader.train.mapper.clip_sampler.offsets = [0]
optimizer = get_config("common/optim.py").mask2former_adamw
lr_multiplier = L(PolyWarmup)(max_iter=160000, power=0.9, warmup_iters=0)
train = get_config("common/train.py").train

model = L(Mask2Former)(
    backbone=L(MixTransformer)(size="b1", drop_path_rate=0.1),
    num_classes=124,
    clip_length=None,
    num_queries=100,
    hidden_dim=256,
    num_heads=8,
    encoder_layers=6,
    encoder_feedforward=1024,
    decoder_layers=9,
    decoder_feedforward=2048,
    fast_attention_masks=False,
    criterion=L(MaskCriterion)(
        num_classes="${..num_classes}",
        matcher=L(HungarianMatcher)(
            class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=12544
        ),
        points=L(PointSampler)(num_points=12544, oversample_ratio=3.0, importance_ratio=0.75),
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        no_object_weight=0.1,
    ),
)
train.output_dir = "./output/mask2former_mit_b1_vspw"
train.init_checkpoint = "mit_b1.pth"  # ImageNet weights of the backbone, published layout
train.max_iter = 160000
train.clip_grad.enabled = True
train.clip_grad.max_norm = 0.01
train.eval_period = 16000
train.checkpointer.period = 4000
