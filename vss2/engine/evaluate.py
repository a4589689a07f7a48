"""Evaluation of a model on the data sets of a config, without a trace on the model or the run."""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from vss2.d2.config import instantiate
from vss2.d2.evaluation import inference_on_dataset, print_csv_format
from vss2.d2.utils import comm

from .parallel import buffers_of_rank_0
from .random_state import preserved_random_state

logger = logging.getLogger(__name__)


class Evaluation:
    """The evaluation that a config describes; loaders are built once.

    `dataloader.test` and `dataloader.evaluator` are one loader and one evaluator, or dicts of them
    by name.

    Args:
        cfg: with `dataloader.test` and `dataloader.evaluator`.

    Raises:
        vss2.errors.InputError: a data set is not there.
    """

    def __init__(self, cfg: DictConfig):
        tests, evaluators = cfg.dataloader.test, cfg.dataloader.evaluator
        self._single = "_target_" in tests
        tests = {"": tests} if self._single else tests
        evaluators = {"": evaluators} if self._single else evaluators
        with preserved_random_state():
            self._parts = {
                str(name): (instantiate(node), instantiate(evaluators[name]))
                for name, node in tests.items()
            }

    def describe(self) -> str:
        """The sizes of the data, such as "160 frames"."""
        return ", ".join(
            f"{name + ': ' if name else ''}{len(loader.dataset)} frames"
            for name, (loader, _) in self._parts.items()
            if hasattr(loader, "dataset")
        )

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """Evaluate `model`; every rank must call it.

        All ranks evaluate with the buffers of rank 0. Modes of all submodules, buffers and the
        state of all random generators are afterwards as before, also after an error.

        Returns:
            {task: {metric: value}}, by name of the data set where there are several; empty on
            ranks other than 0.
        """
        results: dict[str, Any] = {}
        for name, (loader, evaluator) in self._parts.items():
            with preserved_random_state(), buffers_of_rank_0(model), _eval_mode(model):
                counted = _CountingLoader(loader)
                with _forward_clock(model) as clock:
                    found = inference_on_dataset(model, counted, evaluator)
                counted.log_rate(clock.seconds)
            if comm.is_main_process() and found:
                print_csv_format(found)
                results.update(found if self._single else {name: found})
        return results


def do_eval(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Evaluate `model` on the data sets of `cfg`; see `Evaluation`."""
    return Evaluation(cfg)(model)


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every submodule has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass
class _Clock:
    """Seconds that a model took, all calls together."""

    seconds: float = 0.0
    began: float = 0.0


@contextlib.contextmanager
def _forward_clock(model: nn.Module) -> Iterator[_Clock]:
    """Time the calls of `model`, from a batch in memory to its masks or labels on the host.

    That is how frames per second of mask propagation are published: reading, scoring and writing
    are left out. Transfers of frames to the device are counted here.
    """
    clock = _Clock()

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(module: nn.Module, args: Any) -> None:
        clock.began = now()

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        answers = [_on_host(answer) for answer in output] if isinstance(output, list) else output
        clock.seconds += now() - clock.began
        return answers

    handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    try:
        yield clock
    finally:
        for handle in handles:
            handle.remove()


def _on_host(answer: Any) -> Any:
    """An answer whose ids are on the CPU; scores stay where they are, they are large."""
    if not isinstance(answer, dict):
        return answer
    return answer | {
        k: answer[k].cpu() for k in ("mask", "labels") if hasattr(answer.get(k), "cpu")
    }


class _CountingLoader:
    """A loader that counts frames and videos and the time spent waiting for them."""

    def __init__(self, loader: Any):
        self._loader = loader
        self.frames = 0
        self.videos: set[Any] = set()
        self.waited = self.total = 0.0

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        begin = mark = time.perf_counter()
        for batch in self._loader:
            self.waited += time.perf_counter() - mark
            self.frames += len(batch)
            self.videos |= {
                i["video_id"] for i in batch if isinstance(i, Mapping) and "video_id" in i
            }
            yield batch
            mark = time.perf_counter()
            self.total = mark - begin

    def log_rate(self, forward: float) -> None:
        """Log how much was evaluated at what rate, and the most memory that it took.

        On the CPU, that is the most that this process has ever held.

        Args:
            forward: seconds that the model alone took.
        """
        if not self.frames:
            return
        busy = max(self.total - self.waited, 1e-9)
        if torch.cuda.is_available():
            peak, where = torch.cuda.max_memory_allocated(), "GPU"
        else:
            # In kilobytes, but on macOS.
            unit = 1 if sys.platform == "darwin" else 1024
            peak, where = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"
        logger.info(
            "evaluated %d frames of %d videos on this process: %.1f frames/s, "
            "%.1f without loading; peak %s memory %.0f MB; the model alone: %.1f frames/s",
            self.frames,
            len(self.videos),
            self.frames / max(self.total, 1e-9),
            self.frames / busy,
            where,
            peak / 2**20,
            self.frames / max(forward, 1e-9),
        )
