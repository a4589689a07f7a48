"""Mask2Former with a ResNet-50, statistics of its norms fixed, on single frames of VSPW."""

from vss2.d2.config import LazyCall as L
from vss2.modeling.backbone import ResNet

from .mask2former_mit_b1_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(ResNet)(depth=50, norm="FrozenBN")
train.output_dir = "./output/mask2former_r50_vspw"
train.init_checkpoint = "resnet50-19c8e357.pth"  # torchvision's ImageNet weights, first version
