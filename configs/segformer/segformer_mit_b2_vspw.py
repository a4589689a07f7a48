"""SegFormer B2 on single frames of VSPW, with the data and optimizer recipe of CFFM."""

from .segformer_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.size = "b2"
train.output_dir = "./output/segformer_mit_b2_vspw"
train.init_checkpoint = "mit_b2.pth"
