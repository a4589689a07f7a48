"""Training and evaluation of a config: what lies between the door's trainer and the tools."""

from .checks import check_config, weight_files
from .config_copy import copy_config_sources
from .evaluate import Evaluation, do_eval
from .interrupt import TrainingInterrupted
from .launch import find_world, launch, restarted
from .nonfinite import NonFiniteLossError
from .setup import complete_config, newest_checkpoint, prepare_environment, setup
from .train import build_model, do_train
from .trainer import VideoTrainer

__all__ = [
    "Evaluation",
    "NonFiniteLossError",
    "TrainingInterrupted",
    "VideoTrainer",
    "build_model",
    "check_config",
    "complete_config",
    "copy_config_sources",
    "do_eval",
    "do_train",
    "find_world",
    "launch",
    "newest_checkpoint",
    "prepare_environment",
    "restarted",
    "setup",
    "weight_files",
]
