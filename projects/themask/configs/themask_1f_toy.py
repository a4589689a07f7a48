"""THE-Mask stage 1 with a MiT-B0 and small decoders from scratch on the toy world: minutes."""

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.projects.themask.mapper import LabelledClipTrainMapper
from vss2.solver import PolyWarmup

from .themask_1f_mit_b0_vspw import model, optimizer, train

dataloader = get_config("common/data/toy.py").dataloader
dataloader.train.mapper._target_ = LabelledClipTrainMapper

model.num_classes = 12
model.criterion.matcher.num_points = 768
model.criterion.points.num_points = 768
model.warmup_iters = 300
model.num_queries = 24
model.hidden_dim = 64
model.num_heads = 4
model.encoder_layers = 2
model.encoder_feedforward = 256
model.decoder_layers = 3
model.decoder_feedforward = 256
# From scratch, backbone and decoders learn at one rate.
optimizer.lr = 1e-3
optimizer.params.multipliers.backbone.lr_mult = 1.0
lr_multiplier = L(PolyWarmup)(max_iter=600, power=0.9, warmup_iters=50, warmup_ratio=1e-6)

train.output_dir = "./output/themask_1f_toy"
train.init_checkpoint = ""
train.max_iter = 600
train.seed = 0
train.clip_grad.max_norm = 1.0
train.eval_period = 300
train.checkpointer.period = 200
