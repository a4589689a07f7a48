"""The fine-grained encoder on the toy world of objects, without its masks: minutes on two cores.

It propagates the first masks of unseen videos before, during and after training.
"""

from vss2.config import get_config

from .sfc_fine_grained_ytvos import dataloader, lr_multiplier, model, optimizer, train

toy = get_config("common/data/toy_vos.py").dataloader
dataloader.test = toy.test
dataloader.evaluator = toy.evaluator

# Videos of 36 frames at 112x160: 12 clips of each in an epoch.
dataloader.train.dataset = "toy_youtube_train_all_frames"
dataloader.train.mapper.size = 64
dataloader.train.mapper.scale = [0.05, 1.0]
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 2

model.hidden_dim = 512

train.output_dir = "./output/sfc_toy"
train.max_iter = 120
train.seed = 0
train.eval_period = 60
train.checkpointer.period = 60
