"""YouTube-VOS: STCN's recipe for training, with five times DAVIS; evaluation on all frames of 2019.

Annotated are every fifth frames, so the gap between frames is a fifth there.
"""

from vss2.d2.config import LazyCall as L
from vss2.evaluation import YouTubeVOSExporter

from .davis import dataloader

dataloader.train.dataset = [*["davis_2017_train"] * 5, "youtube_vos_2019_train"]

dataloader.test.dataset = "youtube_vos_2019_valid_all_frames"
dataloader.evaluator = L(YouTubeVOSExporter)(
    dataset_name="youtube_vos_2019_valid_all_frames",
    output_dir=None,  # None: <train.output_dir>/inference
)
