"""Exponential moving average of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vss2.d2.engine import HookBase
from vss2.errors import InputError


class WeightAverage:
    """average = decay * average + (1 - decay) * weights, after every iteration.

    Covers all floating-point tensors of the state dict: parameters and running statistics. It
    starts as a copy of the weights at the first iteration.

    Checkpointable: its state is a state dict of the model (counters are the model's own), so that
    `load_weights(model, path, key="ema")` fills a model with it.

    Args:
        model: not wrapped for distributed training.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self.decay = decay
        self._average: dict[str, torch.Tensor] = {}
        self._update = get_ema_multi_avg_fn(decay)

    def _weights(self) -> dict[str, torch.Tensor]:
        state = self.model.state_dict()
        return {n: value.detach() for n, value in state.items() if value.is_floating_point()}

    def start(self) -> None:
        """Start from the weights of now, unless an average was loaded."""
        if not self._average:
            self._average = {name: value.clone() for name, value in self._weights().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of now."""
        weights = self._weights()
        self._update([self._average[n] for n in weights], list(weights.values()), 0)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, and exactly its own again afterwards."""
        weights = self._weights()
        own = {name: value.clone() for name, value in weights.items()}
        try:
            _copy(self._average, weights)
            yield
        finally:
            _copy(own, weights)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {**self.model.state_dict(), **self._average}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """
        Raises:
            InputError: the average is that of another model.
        """
        weights = self._weights()
        found = {name: value.shape for name, value in state.items() if name in weights}
        if found != {name: value.shape for name, value in weights.items()}:
            raise InputError("the averaged weights ('ema') in the checkpoint are of another model")
        self._average = {name: state[name].to(value, copy=True) for name, value in weights.items()}


@torch.no_grad()
def _copy(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    for name, value in source.items():
        target[name].copy_(value)


class AverageWeights(HookBase):
    """Updates the average after every iteration; stands before the checkpointer."""

    def __init__(self, average: WeightAverage):
        self.average = average

    def after_step(self) -> None:
        self.average.update()
