"""MRCFA B1 on Cityscapes video at half size, 512x1024.

The authors published results on Cityscapes but no recipe: these values are ours. One frame of a
snippet is labelled; it is the target of every clip, and the loss on frames alone counts labelled
frames only. The test input is 512x1024, scored at 1024x2048.
"""

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.solver import PolyWarmup

from .mrcfa_mit_b1_vspw import model, optimizer, train

dataloader = get_config("common/data/cityscapes.py").dataloader
dataloader.train.mapper.clip_sampler.offsets = "${model.window}"
lr_multiplier = L(PolyWarmup)(max_iter=80000, power=1.0, warmup_iters=1500, warmup_ratio=1e-6)

model.num_classes = 19
train.output_dir = "./output/mrcfa_mit_b1_cityscapes"
train.max_iter = 80000
train.eval_period = 8000
