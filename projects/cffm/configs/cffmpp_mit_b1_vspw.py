"""CFFM++ with MiT-B1 on VSPW, the published recipe."""

from .cffmpp_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.size = "b1"
model.focal_depth = 2
model.prototypes = "./cluster_centers/cffm_mit_b1_vspw"
train.output_dir = "./output/cffmpp_mit_b1_vspw"
train.init_checkpoint = "cffm_mit_b1_vspw.pth"
