"""Command line, set-up, writers and DDP as most training scripts want them."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import LazyConfig
from ..utils import comm
from ..utils.env import seed_all_rng
from ..utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from ..utils.file_io import PathManager
from ..utils.logger import setup_logger

_PRECISIONS = ("highest", "high", "medium")


def create_ddp_model(
    model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any
) -> nn.Module:
    """Wrap `model` for distributed training; unchanged where there is one process.

    Args:
        fp16_compression: send gradients as fp16.
        kwargs: of `DistributedDataParallel`; `device_ids` is this process's GPU by default, so a
            model on the CPU needs `device_ids=None`.
    """
    if comm.get_world_size() == 1:
        return model
    kwargs.setdefault("device_ids", [comm.get_local_rank()])
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        ddp.register_comm_hook(state=None, hook=fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The flags that training scripts share; the rest of the line are config overrides (`opts`).

    A flag after the first override is taken for an override.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog
        or f"""
Examples:
  one machine:     {sys.argv[0]} --num-gpus 8 --config-file cfg.py
  with overrides:  {sys.argv[0]} --config-file cfg.py train.max_iter=100 optimizer.lr=0.001
  two machines:    {sys.argv[0]} --machine-rank 0 --num-machines 2 --dist-url <URL> [flags]
                   {sys.argv[0]} --machine-rank 1 --num-machines 2 --dist-url <URL> [flags]
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in the output folder, if there is one",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="which machine this is")
    # One port per user, so that two people on a machine do not meet by accident.
    user = os.getuid() if hasattr(os, "getuid") else 1
    port = 2**15 + 2**14 + hash(user) % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where the processes meet; see torch.distributed.init_process_group",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="config overrides: path.to.key=value, separated by spaces; give them last",
    )
    return parser


def _lookup(cfg: Any, *keys: str, default: Any = None) -> Any:
    """The first of the dotted keys that `cfg` (mapping or object) has, else `default`."""
    for key in keys:
        node = cfg
        for part in key.split("."):
            if isinstance(node, Mapping):
                node = node.get(part)
            else:
                node = getattr(node, part, None)
            if node is None:
                break
        else:
            return node
    return default


def _environment() -> str:
    """One line each for what a run's numbers may depend on."""
    cuda = torch.version.cuda or "none"
    lines = [
        f"python: {platform.python_version()} ({sys.platform})",
        f"torch: {torch.__version__} (built for CUDA {cuda})",
        f"CPU threads: {torch.get_num_threads()}",
    ]
    lines += [f"GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return "\n".join(lines)


def default_setup(cfg: Any, args: Any) -> None:
    """Make the output folder, set up logging, write the config, seed, set the backends' switches.

    Args:
        cfg: LazyConfig. Read keys: `train.output_dir` (or `output_dir`, `OUTPUT_DIR`),
            `train.seed` (or `SEED`; negative means random), `train.cudnn_benchmark`,
            `train.float32_precision` ("", "highest", "high" or "medium").
        args: parsed command line; `config_file` and `eval_only` are read.

    Raises:
        ValueError: unknown `train.float32_precision`.
    """
    output_dir = _lookup(cfg, "OUTPUT_DIR", "output_dir", "train.output_dir") or None
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)
    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank, name="vss2")

    logger.info("This is process (rank) %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", _environment())
    logger.info("Arguments: %s", args)
    if getattr(args, "config_file", ""):
        with PathManager.open(args.config_file, "r") as file:
            logger.info("Config file %s:\n%s", args.config_file, file.read())
    if comm.is_main_process() and output_dir:
        path = os.path.join(output_dir, "config.yaml")
        LazyConfig.save(cfg, path)
        logger.info("The whole config is in %s", path)

    seed = _lookup(cfg, "SEED", "train.seed", default=-1)
    seed_all_rng(None if seed < 0 else seed + rank)
    if not getattr(args, "eval_only", False):
        # Trying out convolution algorithms costs time that a short evaluation does not win back.
        torch.backends.cudnn.benchmark = _lookup(cfg, "train.cudnn_benchmark", default=False)
    _set_float32_precision(_lookup(cfg, "train.float32_precision", default=""))


def _set_float32_precision(precision: str) -> None:
    """Set matmul precision and, alike, TF32 in cuDNN; an empty string changes nothing."""
    if not precision:
        return
    if precision not in _PRECISIONS:
        raise ValueError(
            f"train.float32_precision='{precision}' is unknown: expected '' or one of {_PRECISIONS}"
        )
    logging.getLogger(__name__).info("Set float32 matmul precision to %s", precision)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the log, to `metrics.json` and to TensorBoard; makes the folder.

    Args:
        output_dir: where the files go.
        max_iter: total iterations, for the time left.
    """
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
