"""CFFM with MiT-B1 on VSPW, the published recipe."""

from .cffm_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.size = "b1"
model.focal_depth = 2
train.output_dir = "./output/cffm_mit_b1_vspw"
train.init_checkpoint = "mit_b1.pth"
