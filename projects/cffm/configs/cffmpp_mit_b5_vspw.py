"""CFFM++ with MiT-B5 on VSPW, the published recipe."""

from .cffmpp_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.size = "b5"
model.focal_depth = 4
model.prototypes = "./cluster_centers/cffm_mit_b5_vspw"
train.output_dir = "./output/cffmpp_mit_b5_vspw"
train.init_checkpoint = "cffm_mit_b5_vspw.pth"
