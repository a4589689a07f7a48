"""Parameter groups for optimizers, and learning-rate schedules over a whole run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LRMultiplier", "WarmupParamScheduler", "get_default_optimizer_params"]

_NORM_TYPES = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: MutableMapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups of a model, for `torch.optim` optimizers.

    Frozen parameters are left out; a shared one is taken once. What comes later wins: the
    defaults, the decay of norm layers, `lr_factor_func`, `overrides`.

    Args:
        base_lr: of every group; None leaves it to the optimizer.
        weight_decay: of every group; None leaves it to the optimizer.
        weight_decay_norm: of the parameters of norm layers.
        bias_lr_factor: lr of parameters named `bias` is this times `base_lr`.
        weight_decay_bias: of parameters named `bias`.
        lr_factor_func: full name of a parameter -> factor on `base_lr`.
        overrides: last part of a parameter's name -> options of its group. The options for
            `bias` that follow from the two arguments above are written into it.

    Returns:
        groups `{"params": [...], "lr": ..., "weight_decay": ...}`, one for each set of options.

    Raises:
        ValueError: a factor is given without `base_lr`, or `overrides` has `bias` beside the
            arguments for it.
    """
    overrides = {} if overrides is None else overrides
    bias_options: dict[str, Any] = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor requires base_lr")
        bias_options["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias_options["weight_decay"] = weight_decay_bias
    if bias_options:
        if "bias" in overrides:
            raise ValueError("Conflicting overrides for 'bias'")
        overrides["bias"] = bias_options
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func requires base_lr")

    defaults = {"lr": base_lr, "weight_decay": weight_decay}
    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            options = {key: value for key, value in defaults.items() if value is not None}
            if isinstance(module, _NORM_TYPES) and weight_decay_norm is not None:
                options["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None and base_lr is not None:
                full_name = f"{module_name}.{name}" if module_name else name
                options["lr"] = base_lr * lr_factor_func(full_name)
            options.update(overrides.get(name, {}))
            _add_to_group(groups, parameter, options)
    return groups


def _add_to_group(
    groups: list[dict[str, Any]], parameter: nn.Parameter, options: Mapping[str, Any]
) -> None:
    """Add to the group with equal options, or begin one: few groups make optimizers fast."""
    for group in groups:
        if {key: value for key, value in group.items() if key != "params"} == options:
            group["params"].append(parameter)
            return
    groups.append({"params": [parameter], **options})


class LRMultiplier(LRScheduler):
    """Learning rate of each group = its initial one x `multiplier(iteration / max_iter)`."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ) -> None:
        """
        Args:
            multiplier: a schedule of fvcore's, from [0, 1) to a factor.
            max_iter: length of the run.
            last_iter: the last iteration that was done, to go on from; -1 begins. Other values
                need `initial_lr` in the groups, as a restored optimizer has it.

        Raises:
            ValueError: `multiplier` is something else.
        """
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(
                "LRMultiplier needs a ParamScheduler of fvcore's as multiplier; got "
                f"{multiplier!r} instead."
            )
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Only the position and the initial rates: the schedule is the config's."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float | torch.Tensor]:
        """Rates of the groups at the current iteration."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]


class WarmupParamScheduler(CompositeParamScheduler):
    """A schedule whose begin is replaced by a ramp or a step up to it."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        """
        Args:
            scheduler: the schedule without warm-up.
            warmup_factor: the ramp begins at this times `scheduler(0)`.
            warmup_length: of the ramp, as a fraction of the run.
            warmup_method: "linear" (ramp up to `scheduler(warmup_length)`) or "constant".
            rescale_interval: whether the whole of `scheduler` runs after the ramp, which then
                goes up to `scheduler(0)`; else its begin is what the ramp replaces.

        Raises:
            ValueError: another `warmup_method`.
        """
        start = warmup_factor * scheduler(0.0)
        ramp: ParamScheduler
        if warmup_method == "constant":
            ramp = ConstantParamScheduler(start)
        elif warmup_method == "linear":
            ramp = LinearParamScheduler(
                start, scheduler(0.0 if rescale_interval else warmup_length)
            )
        else:
            raise ValueError(f"Unknown warmup method: {warmup_method}")
        super().__init__(
            [ramp, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )
