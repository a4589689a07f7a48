"""Where a run's numbers go: the screen, metrics.json, and tensorboard or wandb where asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vss2.d2.utils import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

logger = logging.getLogger(__name__)


def build_writers(cfg: DictConfig, output_dir: Path) -> list[EventWriter]:
    """The writers of a run, for rank 0.

    A package that is asked for and not there costs one warning, not the run.
    """
    writers: list[EventWriter] = [
        CommonMetricPrinter(int(cfg.train.max_iter)),
        JSONWriter(str(output_dir / "metrics.json")),
    ]
    if cfg.train.tensorboard:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except Exception as e:  # a broken install fails in its own ways
            logger.warning("no tensorboard files: %s", e)
        else:
            writers.append(TensorboardXWriter(str(output_dir)))
    if cfg.train.wandb.enabled:
        try:
            import wandb
        except Exception as e:
            logger.warning("train.wandb.enabled, but nothing goes to wandb: %s", e)
        else:
            writers.append(WandbWriter(wandb, cfg, output_dir))
    return writers


class WandbWriter(EventWriter):
    """Scalars to Weights & Biases, each iteration once; a resume continues the same wandb run.

    Args:
        wandb: the imported package.
        cfg: of the run; `train.wandb.project` names the project.
        output_dir: of the run; its file `wandb_id` names the wandb run.
        window_size: iterations of the median that losses are smoothed with.
    """

    def __init__(self, wandb: Any, cfg: DictConfig, output_dir: Path, window_size: int = 20):
        self._window_size = window_size
        self._last_written = -1
        name_file = output_dir / "wandb_id"
        known = name_file.read_text().strip() if name_file.is_file() else None
        self._run = wandb.init(
            project=cfg.train.wandb.project,
            dir=str(output_dir),
            id=known,
            resume="allow",
            config=OmegaConf.to_container(cfg.train, resolve=True),
        )
        name_file.write_text(str(self._run.id))

    def write(self) -> None:
        scalars: dict[int, dict[str, float]] = {}
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_written:
                scalars.setdefault(iteration, {})[name] = value
        for iteration in sorted(scalars):
            self._run.log(scalars[iteration], step=iteration)
            self._last_written = iteration

    def close(self) -> None:
        self._run.finish()
