"""STCN on all frames of YouTube-VOS 2019's val set: each object has a memory of its own."""

from vss2.config import get_config

from .stcn_r50_davis17 import dataloader, lr_multiplier, model, optimizer, train

youtube = get_config("common/data/youtube_vos.py").dataloader
dataloader.test = youtube.test
dataloader.evaluator = youtube.evaluator
model.session = dict(protocol="youtube_vos", mem_every=5, top_k=20, include_last=False, size=480)
train.output_dir = "./output/stcn_r50_ytvos19"
