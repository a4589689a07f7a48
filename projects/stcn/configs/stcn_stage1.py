"""STCN, stage 1: two objects of BL30K's videos, from stage 0."""

from fvcore.common.param_scheduler import MultiStepParamScheduler

from vss2.config import get_config
from vss2.d2.config import LazyCall as L

from ._stcn import model, optimizer, train

dataloader = get_config("common/data/bl30k.py").dataloader
dataloader.train.total_batch_size = 8  # 4 for each of 2 GPUs
# An epoch of 29989 videos: gaps change between epochs, as published.
dataloader.train.mapper.clip_sampler.curriculum.epoch_iters = 3748

lr_multiplier = L(MultiStepParamScheduler)(
    values=[1.0, 0.1], milestones=[400000], num_updates=500000
)

train.output_dir = "./output/stcn_stage1"
train.max_iter = 500000
train.init_checkpoint = "output/stcn_stage0/model_final.pth"
