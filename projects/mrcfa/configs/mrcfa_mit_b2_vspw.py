"""MRCFA B2 on VSPW: half of the tokens."""

from .mrcfa_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.size = "b2"
model.keep_ratio = 0.5
train.output_dir = "./output/mrcfa_mit_b2_vspw"
train.init_checkpoint = "mit_b2.pth"
