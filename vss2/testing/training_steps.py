"""Comparison of a few optimizer steps with those that the published training code made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from vss2.layers import DropPath


def silence_dropout(model: nn.Module) -> None:
    """Training mode with every dropout and drop path off, as the fixtures were recorded."""
    model.train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d, DropPath)):
            module.eval()


def name_hash(names: list[str]) -> str:
    """sha1 of the newline-joined sorted names."""
    return hashlib.sha1("\n".join(sorted(names)).encode()).hexdigest()


def check_groups(
    description: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """The optimizer's groups hold exactly the parameters that the published groups update."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    base_lr = description["recipe"]["base_lr"]
    groups = {
        (group["lr"], group["weight_decay"]): sorted(names[id(p)] for p in group["params"])
        for group in optimizer.param_groups
    }
    expected = {
        (base_lr * group["lr_mult"], group["weight_decay"]): group
        for group in description["groups"]
        if group.get("updated_count")
    }
    assert groups.keys() == expected.keys()
    for key, recorded in expected.items():
        assert len(groups[key]) == recorded["updated_count"]
        assert name_hash(groups[key]) == recorded["updated_sha1"]


def check_training_steps(
    description: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_factor: Callable[[float], float],
    compute_loss: Callable[[], tuple[torch.Tensor, dict[str, float]]],
    max_grad_norm: float | None = None,
    loss_tolerance: float = 1e-5,
    term_tolerance: float = 1e-5,
) -> None:
    """Run the recorded iterations and compare everything that the fixture holds.

    Args:
        lr_factor: the schedule, a function of iteration / max_iters.
        compute_loss: one forward pass; the total loss and the recorded terms by name.
        max_grad_norm: to which gradients are clipped; None = not at all.
        loss_tolerance, term_tolerance: relative, of the total loss and of its terms.
    """
    check_groups(description, model, optimizer)
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    initial = [group["lr"] for group in optimizer.param_groups]
    max_iters = description["recipe"]["schedule"]["max_iters"]
    for index, step in enumerate(description["steps"]):
        factor = lr_factor(step["iteration"] / max_iters)
        assert np.isclose(factor, step["lr_factor"], rtol=1e-9, atol=0)
        for group, lr in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = lr * factor
        optimizer.zero_grad()
        loss, terms = compute_loss()
        loss.backward()
        assert np.isclose(loss.item(), step["loss"], rtol=loss_tolerance)
        _check_terms(step["terms"], terms, term_tolerance)
        _check_gradients(description, arrays, index, parameters)
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters.values(), max_grad_norm)
        optimizer.step()
    _check_changes(description, arrays, before, parameters)
    _check_buffers(arrays, dict(model.named_buffers()))


def _check_terms(
    recorded: Mapping[str, float], terms: Mapping[str, float], tolerance: float
) -> None:
    for name, value in terms.items():
        limit = 0.05 if name == "acc" else tolerance * abs(recorded[name])
        assert abs(value - recorded[name]) <= limit, name


def _check_gradients(
    description: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    index: int,
    parameters: Mapping[str, nn.Parameter],
) -> None:
    norms = {
        name: float("nan") if p.grad is None else p.grad.double().norm().item()
        for name, p in parameters.items()
    }
    total = np.sqrt(np.nansum(np.square(list(norms.values()))))
    assert np.isclose(total, description["steps"][index]["grad_norm"], rtol=1e-3)
    for position, name in enumerate(description["parameter_order"]):
        recorded = arrays["grad_norm"][index, position]
        assert np.isnan(recorded) == np.isnan(norms[name]), f"{name}: gradient or none"


def _check_changes(
    description: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    before: Mapping[str, torch.Tensor],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    for position, name in enumerate(description["parameter_order"]):
        change = (parameters[name].detach() - before[name]).norm().item()
        if np.isnan(arrays["grad_norm"][0, position]):
            assert change == 0.0, f"{name} moved without a gradient"
        elif arrays["delta_norm_clear"][position]:
            assert np.isclose(change, arrays["delta_norm"][position], rtol=1e-2), name
    for name, rule in description["slices"]["per_parameter"].items():
        flat = (parameters[name].detach() - before[name]).flatten().numpy()
        expected = arrays[f"delta64/{name}"]
        positions = np.linspace(0, flat.size - 1, len(expected)).astype(np.int64)
        clear = arrays[f"clear/{name}"].astype(bool)
        error = np.abs(flat[positions] - expected)[clear].max()
        assert error <= rule["tolerance_over_lr"] * rule["lr"], f"{name}: {error:.3g}"


def _check_buffers(arrays: Mapping[str, np.ndarray], buffers: Mapping[str, torch.Tensor]) -> None:
    limits = {"running_mean": 5e-3, "running_var": 1e-3, "num_batches_tracked": 0.0}
    for key, expected in arrays.items():
        if key.startswith("buffer/"):
            value = buffers[key.removeprefix("buffer/")].numpy()
            limit = limits[key.rsplit(".", 1)[1]] * np.abs(expected).max()
            assert np.abs(value - expected).max() <= limit, key
