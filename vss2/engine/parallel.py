"""A model on several ranks: its norms, its wrapper, and buffers that are the same everywhere."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator

import torch
from omegaconf import DictConfig
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from vss2.d2.engine import HookBase, create_ddp_model
from vss2.d2.utils import comm

logger = logging.getLogger(__name__)


def convert_norms(model: nn.Module, device: torch.device, sync_bn: bool) -> nn.Module:
    """Batch norms as a run of several ranks on `device` needs them; parameters stay the same.

    On CUDA they become SyncBatchNorm where `sync_bn` says so. On the CPU, where that does not
    work, a SyncBatchNorm becomes a plain batch norm, and each rank norms with its own batch.
    """
    if comm.get_world_size() == 1:
        return model
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if sync_bn else model
    count = sum(isinstance(module, _BatchNorm) for module in model.modules())
    if count and sync_bn:
        logger.info(
            "%d batch norms use the statistics of their own process: SyncBatchNorm needs CUDA",
            count,
        )
    return _without_sync(model)


def _without_sync(module: nn.Module) -> nn.Module:
    """`module` with every SyncBatchNorm replaced by a BatchNorm of any input rank."""
    for name, child in module.named_children():
        setattr(module, name, _without_sync(child))
    if not isinstance(module, nn.SyncBatchNorm):
        return module
    plain = _AnyBatchNorm(
        module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
    )
    plain._parameters = module._parameters
    plain._buffers = module._buffers
    return plain.train(module.training)


class _AnyBatchNorm(_BatchNorm):
    """Batch norm over [N, C, ...], which SyncBatchNorm takes too."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input, got {input.dim()}D")


def distribute(cfg: DictConfig, model: nn.Module, device: torch.device) -> nn.Module:
    """`model` in DistributedDataParallel with the options of `train.ddp`, if there are ranks."""
    options = dict(cfg.train.ddp)
    if device.type == "cpu":
        options["device_ids"] = None
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
        # Its name in newer releases of torch, which warn about the older one.
        options["forward_sync_buffers"] = options.pop("broadcast_buffers")
    return create_ddp_model(model, **options)


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank the buffers (running statistics) of rank 0; every rank must call it."""
    if comm.get_world_size() == 1:
        return
    with torch.no_grad():
        for buffer in model.buffers():
            whole = buffer.contiguous()
            torch.distributed.broadcast(whole, src=0)
            if whole is not buffer:
                buffer.copy_(whole)


@contextlib.contextmanager
def buffers_of_rank_0(model: nn.Module) -> Iterator[None]:
    """Every rank has rank 0's buffers inside, and its own again afterwards."""
    own = [] if comm.get_world_size() == 1 else [b.detach().clone() for b in model.buffers()]
    broadcast_buffers(model)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in zip(model.buffers() if own else (), own, strict=True):
                buffer.copy_(kept)


class ListUnused(HookBase):
    """Names, after the first backward pass of a run, the trained parameters without gradient."""

    def __init__(self, model: nn.Module):
        self.model = model

    def after_backward(self) -> None:
        if self.trainer.iter != self.trainer.start_iter:
            return
        unused = [n for n, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            logger.warning(
                "%d parameters have no gradient after the first iteration: %s. Several processes "
                "need train.ddp.find_unused_parameters=true for such a model",
                len(unused),
                ", ".join(unused),
            )
        else:
            logger.info("every trained parameter has a gradient after the first iteration")
