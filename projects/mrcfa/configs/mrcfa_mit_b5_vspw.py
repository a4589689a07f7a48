"""MRCFA B5 on VSPW: half of the tokens."""

from .mrcfa_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.size = "b5"
model.keep_ratio = 0.5
train.output_dir = "./output/mrcfa_mit_b5_vspw"
train.init_checkpoint = "mit_b5.pth"
