"""STCN on all frames of YouTube-VOS 2018's val set."""

from .stcn_r50_ytvos19 import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.dataset = "youtube_vos_2018_valid_all_frames"
dataloader.evaluator.dataset_name = "youtube_vos_2018_valid_all_frames"
train.output_dir = "./output/stcn_r50_ytvos18"
