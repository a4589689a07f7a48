"""THE-Mask stage 1 with MiT-B5 on single frames of VSPW."""

from .themask_1f_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.size = "b5"
train.output_dir = "./output/themask_1f_mit_b5_vspw"
train.init_checkpoint = "mit_b5.pth"
