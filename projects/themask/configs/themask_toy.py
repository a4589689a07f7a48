"""THE-Mask on the toy world: stage 2, on top of what `themask_1f_toy` has trained."""

from vss2.d2.config import LazyCall as L
from vss2.solver import PolyWarmup

from .themask_1f_toy import dataloader, optimizer, train
from .themask_1f_toy import model as stage1
from .themask_mit_b0_vspw import model

dataloader.train.mapper.clip_sampler.offsets = [-3, 0]
# Four clips of two frames: as many frames a step as stage 1 has.
dataloader.train.total_batch_size = 4

model.num_classes = stage1.num_classes
model.criterion.matcher.num_points = stage1.criterion.matcher.num_points
model.criterion.points.num_points = stage1.criterion.points.num_points
model.num_queries = stage1.num_queries
model.hidden_dim = stage1.hidden_dim
model.num_heads = stage1.num_heads
model.encoder_layers = stage1.encoder_layers
model.encoder_feedforward = stage1.encoder_feedforward
model.decoder_layers = stage1.decoder_layers
model.decoder_feedforward = stage1.decoder_feedforward
lr_multiplier = L(PolyWarmup)(max_iter=300, power=0.9, warmup_iters=50, warmup_ratio=1e-6)

train.output_dir = "./output/themask_toy"
train.init_checkpoint = "./output/themask_1f_toy/model_final.pth"
train.max_iter = 300
train.eval_period = 0
train.checkpointer.period = 100
