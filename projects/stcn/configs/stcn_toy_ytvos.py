"""The toy config's model on the toy world in YouTube-VOS's layout and protocol.

Objects appear later, two categories are new, every fifth frame counts.
"""

from vss2.d2.config import LazyCall as L
from vss2.evaluation import YouTubeVOSExporter

from .stcn_toy import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.dataset = "toy_youtube_valid_all_frames"
dataloader.evaluator = L(YouTubeVOSExporter)(
    dataset_name="toy_youtube_valid_all_frames", output_dir=None
)
model.session.protocol = "youtube_vos"

train.output_dir = "./output/stcn_toy_ytvos"
