"""CFFM with MiT-B2 on VSPW, the published recipe."""

from .cffm_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.size = "b2"
model.focal_depth = 2
train.output_dir = "./output/cffm_mit_b2_vspw"
train.init_checkpoint = "mit_b2.pth"
