"""MRCFA B0 from scratch on the toy world: minutes on two CPU cores."""

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.solver import PolyWarmup

from .mrcfa_mit_b0_vspw import model, optimizer, train

dataloader = get_config("common/data/toy.py").dataloader
dataloader.train.mapper.clip_sampler.offsets = "${model.window}"
# Two clips of four frames: as many labelled frames a step as the SegFormer of the toy world has.
dataloader.train.total_batch_size = 2

model.num_classes = 12
# A crop of 96x128 has but 12 tokens of 32x32 pixels. The published share of 0.8 would leave nine.
model.keep_ratio = 1.0
# From scratch the frames' own scores must teach the backbone, as SegFormer's do: at a weight of 1
# the branches, which know less, lead it away.
model.frame_loss_weight = 3.0
# From scratch, backbone and head learn at one rate, but for three parts of the affinity branch.
optimizer.lr = 1e-3
optimizer.params.multipliers.head.lr_mult = 1.0
# The refinement net's few scalars keep the published factor of 10, the branches' classifiers get
# twice that: at a factor of 1 they hardly move in 600 steps, and the branches stay far behind the
# frames' own classifier. Values of references learn slower, else they drown the target's features.
optimizer.params.multipliers.encoder_layer = {"lr_mult": 10.0}
optimizer.params.multipliers.smalldecoder = {"lr_mult": 20.0}
optimizer.params.multipliers.sr1_feat = {"lr_mult": 0.3}
lr_multiplier = L(PolyWarmup)(max_iter=600, power=1.0, warmup_iters=50, warmup_ratio=1e-6)

train.output_dir = "./output/mrcfa_toy"
train.init_checkpoint = ""
train.max_iter = 600
train.seed = 0
train.eval_period = 300
train.checkpointer.period = 200
