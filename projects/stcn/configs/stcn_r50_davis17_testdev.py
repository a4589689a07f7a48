"""STCN on DAVIS 2017's test-dev: every third frame is remembered; the server scores the masks."""

from .stcn_r50_davis17 import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.dataset = "davis_2017_testdev"
dataloader.evaluator.dataset_name = "davis_2017_testdev"
model.session.mem_every = 3
train.output_dir = "./output/stcn_r50_davis17_testdev"
