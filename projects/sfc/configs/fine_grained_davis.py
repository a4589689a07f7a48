"""The fine-grained encoder alone on DAVIS 2017 val; published J&F 67.98.

The weights are `pretrained_fc.pth` of the release.
"""

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.projects.sfc import SFC, FrameEncoder

dataloader = get_config("common/data/davis.py").dataloader
dataloader.pop("train")  # nothing is trained
train = get_config("common/train.py").train

model = L(SFC)(
    fine=L(FrameEncoder)(depth=18, padding_mode="zeros"),
    semantic=None,
    fine_weight=1.75,
    bn_warmup=True,  # the release's train-mode pass after loading; its numbers hold with it
    session=dict(
        context=20,
        radius=12,
        top_k=10,
        temperature=0.05,
        long_mem=[0],
        norm_mask=False,
    ),
)

train.init_checkpoint = "pretrained_fc.pth"
