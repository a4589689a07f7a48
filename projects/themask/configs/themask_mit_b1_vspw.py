"""THE-Mask with MiT-B1 on clips of two frames of VSPW: stage 2."""

from .themask_mit_b0_vspw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.size = "b1"
train.output_dir = "./output/themask_mit_b1_vspw"
train.init_checkpoint = "themask_1f_mit_b1_vspw.pth"
