"""Parameter groups and the learning-rate schedule of the published VSPW recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .errors import InputError

_MULTIPLIERS = ("lr_mult", "decay_mult")
_NO_DECAY = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.Embedding)


def get_param_groups(
    model: nn.Module,
    base_lr: float,
    weight_decay: float,
    multipliers: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Trainable parameters grouped by learning rate and weight decay.

    Args:
        model: its parameters with requires_grad; shared ones count once.
        base_lr, weight_decay: of parameters that no key matches.
        multipliers: key -> {"lr_mult": float, "decay_mult": float}, each optional. A key matches
            when it is a substring of the parameter's name. Longer keys are tried first, equally
            long ones alphabetically, and the first match alone counts: with keys "head" and
            "norm", a norm inside `decode_head` follows "head".

    Returns:
        Groups for an optimizer, each with `params`, `lr` and `weight_decay`.

    Raises:
        InputError: an unknown multiplier.
    """
    for key, rule in multipliers.items():
        unknown = sorted(set(rule) - set(_MULTIPLIERS))
        if unknown:
            raise InputError(f"multipliers[{key!r}] has {unknown}, expected {_MULTIPLIERS}")
    ordered = sorted(multipliers, key=lambda key: (-len(key), key))
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rule = next((multipliers[key] for key in ordered if key in name), {})
        lr = base_lr * rule.get("lr_mult", 1.0)
        decay = weight_decay * rule.get("decay_mult", 1.0)
        group = groups.setdefault((lr, decay), {"params": [], "lr": lr, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def get_param_groups_by_module(
    model: nn.Module,
    base_lr: float,
    weight_decay: float,
    lr_mults: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Trainable parameters grouped as Mask2Former does: norms and embeddings without decay.

    What decays is told by the kind of module that holds a parameter, not by its name.

    Args:
        model: its parameters with requires_grad; shared ones count once.
        base_lr: of parameters that no key matches.
        weight_decay: of all but norm layers and `nn.Embedding`.
        lr_mults: key -> factor on `base_lr` of parameters whose name contains it; longer keys are
            tried first, equally long ones alphabetically.

    Returns:
        Groups for an optimizer, each with `params`, `lr` and `weight_decay`.
    """
    ordered = sorted(lr_mults, key=lambda key: (-len(key), key))
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    seen = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            lr = base_lr * next((lr_mults[key] for key in ordered if key in name), 1.0)
            decay = 0.0 if isinstance(module, _NO_DECAY) else weight_decay
            group = groups.setdefault((lr, decay), {"params": [], "lr": lr, "weight_decay": decay})
            group["params"].append(parameter)
    return list(groups.values())


class PolyWarmup(ParamScheduler):
    """Polynomial decay times a linear warm-up ramp, as the published recipes schedule it.

    At iteration t of T the factor is (1 - t/T)^power, and for t < warmup_iters it is multiplied
    by 1 - (1 - t/warmup_iters)(1 - warmup_ratio). fvcore's warm-up interpolates to the value
    after the ramp instead, which differs by up to warmup_iters/T.

    Args:
        max_iter: T. In a run of another length the whole curve is stretched to it.
        power: of the decay.
        warmup_iters: length of the ramp in iterations of T.
        warmup_ratio: factor of the ramp at t = 0.
    """

    def __init__(
        self,
        max_iter: int,
        power: float = 1.0,
        warmup_iters: int = 0,
        warmup_ratio: float = 1e-6,
    ):
        if not 0 <= warmup_iters < max_iter:
            raise InputError(
                f"warmup_iters must lie between 0 and max_iter = {max_iter}, got {warmup_iters}"
            )
        self.max_iter = max_iter
        self.power = power
        self.warmup_iters = warmup_iters
        self.warmup_ratio = warmup_ratio

    def __call__(self, where: float) -> float:
        iteration = where * self.max_iter
        factor = (1.0 - where) ** self.power
        if iteration < self.warmup_iters:
            ramp = (1.0 - iteration / self.warmup_iters) * (1.0 - self.warmup_ratio)
            factor *= 1.0 - ramp
        return factor
