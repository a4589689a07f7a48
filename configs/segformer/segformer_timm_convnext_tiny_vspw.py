"""SegFormer's head on a ConvNeXt-T of timm, on single frames of VSPW; the values are ours.

Any other timm model with maps at strides 4 to 32 serves: `model.backbone.name=resnet50`, with its
weights in `train.init_checkpoint`, or `train.init_checkpoint='' model.backbone.pretrained=True` to
let timm download them.
"""

from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import TimmBackbone

from .segformer_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(TimmBackbone)(name="convnext_tiny", pretrained=False, drop_path_rate=0.1)
train.output_dir = "./output/segformer_timm_convnext_tiny_vspw"
train.init_checkpoint = "convnext_tiny.safetensors"  # ImageNet weights under timm's names
