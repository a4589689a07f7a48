from tinyplug.scored import KillableSegmentor

from vss2.d2.config import LazyCall as L
from vss2.evaluation import VSSEvaluator

from .tiny import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model._target_ = KillableSegmentor
dataloader.test.dataset = "tiny_scored"
dataloader.evaluator = L(VSSEvaluator)(dataset_name="tiny_scored", reduce=False)
train.max_iter = 6
train.grad_accum = 2
train.eval_period = 3
