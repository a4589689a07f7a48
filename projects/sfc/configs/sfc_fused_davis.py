"""SFC on DAVIS 2017 val: fine-grained and semantic features together; published J&F 71.34.

The weights are two files, `train.init_checkpoint.fine` and `train.init_checkpoint.semantic`; or
one vss2 checkpoint that holds both.
"""

from vss2.d2.config import LazyCall as L
from vss2.projects.sfc import FrameEncoder

from .fine_grained_davis import dataloader, model, train

model.semantic = L(FrameEncoder)(depth=50, padding_mode="zeros")
model.session.top_k = 15
model.session.radius = 15
model.session.temperature = 0.1

train.init_checkpoint = dict(fine="pretrained_fc.pth", semantic="moco_v1_200ep_pretrain.pth.tar")
