"""STCN on the val set of DAVIS 2016 at 480p: all that is annotated is one object."""

from .stcn_r50_davis17 import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.dataset = "davis_2016_val"
dataloader.test.mapper.single_object = True
dataloader.evaluator.dataset_name = "davis_2016_val"
dataloader.evaluator.task = "davis-2016"
train.output_dir = "./output/stcn_r50_davis16"
