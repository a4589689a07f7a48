"""STCN, stage 2: two objects of DAVIS and YouTube-VOS, from stage 1; the result is "s012"."""

from fvcore.common.param_scheduler import MultiStepParamScheduler

from vss2.config import get_config
from vss2.d2.config import LazyCall as L

from ._stcn import model, optimizer, train

dataloader = get_config("common/data/davis.py").dataloader
dataloader.train = get_config("common/data/youtube_vos.py").dataloader.train
dataloader.train.total_batch_size = 8  # 4 for each of 2 GPUs
# An epoch of 5 x 60 + 3464 videos: gaps change between epochs, as published.
dataloader.train.mapper.clip_sampler.curriculum.epoch_iters = 470

lr_multiplier = L(MultiStepParamScheduler)(
    values=[1.0, 0.1], milestones=[250000], num_updates=300000
)

train.output_dir = "./output/stcn_stage2"
train.max_iter = 300000
train.init_checkpoint = "output/stcn_stage1/model_final.pth"
