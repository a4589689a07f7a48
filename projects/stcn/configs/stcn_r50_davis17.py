"""STCN on the val set of DAVIS 2017 at 480p, with the published protocol; weights of stage 2."""

from .stcn_stage2 import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "./output/stcn_r50_davis17"
train.init_checkpoint = "stcn.pth"
