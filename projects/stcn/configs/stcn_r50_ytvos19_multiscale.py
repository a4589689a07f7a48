"""STCN on YouTube-VOS 2019's val set at two sizes, each also mirrored; published: 85.2 overall."""

from .stcn_r50_ytvos19 import dataloader, lr_multiplier, model, optimizer, train

model.session.scales = [
    dict(size=480),
    dict(size=480, flip=True),
    dict(size=600, kernel_sigma=7.0),  # kernelized memory, in cells of the grid
    dict(size=600, flip=True, kernel_sigma=7.0),
]
model.session.amp = True
train.output_dir = "./output/stcn_r50_ytvos19_multiscale"
