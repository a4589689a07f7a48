"""MRCFA B1 on VSPW: half of the tokens, and as the only published size two refinement layers."""

from .mrcfa_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.size = "b1"
model.keep_ratio = 0.5
model.refinement_layers = 2
train.output_dir = "./output/mrcfa_mit_b1_vspw"
train.init_checkpoint = "mit_b1.pth"
