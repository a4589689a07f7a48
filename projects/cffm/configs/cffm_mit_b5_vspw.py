"""CFFM with MiT-B5 on VSPW, the published recipe."""

from .cffm_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.size = "b5"
model.focal_depth = 4
train.output_dir = "./output/cffm_mit_b5_vspw"
train.init_checkpoint = "mit_b5.pth"
