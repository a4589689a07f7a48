"""STCN, stage 3: as stage 2, but from stage 0 and half as long; the result is "s03"."""

from .stcn_stage2 import dataloader, lr_multiplier, model, optimizer, train

lr_multiplier.milestones = [125000]
lr_multiplier.num_updates = 150000

train.output_dir = "./output/stcn_stage3"
train.max_iter = 150000
train.init_checkpoint = "output/stcn_stage0/model_final.pth"
