"""Prediction on frames from anywhere, through a model's streaming session."""

from vss2.inference.given_masks import GivenMasks
from vss2.inference.predictor import Prediction, PredictionStream, VideoPredictor
from vss2.inference.results import ResultWriter
from vss2.inference.run_folder import RunFolder
from vss2.inference.runner import RunReport, Selection, Stopped, run

__all__ = [
    "GivenMasks",
    "Prediction",
    "PredictionStream",
    "ResultWriter",
    "RunFolder",
    "RunReport",
    "Selection",
    "Stopped",
    "VideoPredictor",
    "run",
]
