"""Video Mask2Former with a MiT-B1 on clips of two frames of VSPW, three frames apart."""

from .mask2former_mit_b1_vspw import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.mapper.clip_sampler.offsets = [-3, 0]
model.clip_length = 2
train.output_dir = "./output/mask2former_video_mit_b1_vspw"
