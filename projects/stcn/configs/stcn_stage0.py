"""STCN, stage 0: static images as clips of one object, from ImageNet weights of both encoders."""

from fvcore.common.param_scheduler import MultiStepParamScheduler

from vss2.config import get_config
from vss2.d2.config import LazyCall as L

from ._stcn import model, optimizer, train

dataloader = get_config("common/data/static_images.py").dataloader
dataloader.train.total_batch_size = 16  # 8 for each of 2 GPUs

model.single_object = True
lr_multiplier = L(MultiStepParamScheduler)(
    values=[1.0, 0.1], milestones=[150000], num_updates=300000
)

train.output_dir = "./output/stcn_stage0"
train.max_iter = 300000
train.init_checkpoint = dict(
    key_encoder="resnet50-19c8e357.pth", value_encoder="resnet18-5c106cde.pth"
)
