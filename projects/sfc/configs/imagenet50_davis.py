"""ResNet-50 with ImageNet labels on DAVIS 2017 val; published J&F 67.30.

The weights are torchvision's first ones.
"""

from vss2.d2.config import LazyCall as L
from vss2.projects.sfc import FrameEncoder

from .fine_grained_davis import dataloader, model, train

model.fine = None
model.semantic = L(FrameEncoder)(depth=50, padding_mode="zeros")

train.init_checkpoint = "resnet50-19c8e357.pth"
