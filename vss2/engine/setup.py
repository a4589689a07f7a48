"""What happens before the first model is built: folder, log, seed, device, saved config."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from vss2.checkpoint_folder import newest_good
from vss2.checkpoint_io import check_archive
from vss2.config import get_config, save_config
from vss2.d2 import BACKEND
from vss2.d2.engine import TrainerBase
from vss2.d2.utils import comm, seed_all_rng, setup_logger
from vss2.errors import InputError, InputFileError, did_you_mean

from .failures import SHORT_ERRORS, stop_when_disk_is_full

logger = logging.getLogger(__name__)


def complete_config(cfg: DictConfig) -> DictConfig:
    """Fill settings of `train` that a config leaves out with those of configs/common/train.py.

    In place; returns `cfg`. Settings that nothing reads are named in the log.
    """
    defaults = get_config("common/train.py").train
    if not isinstance(cfg.get("train"), DictConfig):
        cfg.train = {}
    for key in cfg.train:
        if key not in defaults:
            logger.warning("vss2 does not read train.%s.%s", key, did_you_mean(key, defaults))
    _fill(cfg.train, defaults)
    return cfg


def _fill(node: DictConfig, defaults: DictConfig) -> None:
    for key, value in defaults.items():
        if key not in node.keys():  # noqa: SIM118 (`in` would resolve interpolations)
            node[key] = value
        elif isinstance(value, DictConfig) and isinstance(node[key], DictConfig):
            _fill(node[key], value)


def setup(cfg: DictConfig, *, save: bool = True) -> None:
    """Prepare this process for a run of `cfg`, which `complete_config` has completed.

    Makes the output folder, opens the log, seeds all generators, sets torch's switches, fills what
    the run decides (`train.seed`, `train.device`, seed of the training data, output folder of the
    evaluator) into `cfg` and writes it to `<output_dir>/config.yaml`.

    Args:
        cfg: changed in place.
        save: whether to write the config; an evaluation leaves that of the training alone.

    Raises:
        InputError: the output folder cannot be written, or a setting is out of range.
    """
    output_dir = make_output_dir(cfg)
    _open_log(output_dir)
    _log_header()
    _set_torch_switches(cfg.train)
    _check_device(cfg)
    if int(cfg.train.seed) < 0:
        cfg.train.seed = int(comm.shared_random_seed()) % 2**31
        logger.info("train.seed is negative: drew %d", cfg.train.seed)
    seed_all_rng(int(cfg.train.seed) + comm.get_rank())
    _fill_loader_nodes(cfg, output_dir)
    if save:
        save_run_config(cfg)
    comm.synchronize()


def save_run_config(cfg: DictConfig) -> None:
    """Write `cfg` to `<output_dir>/config.yaml`, on rank 0."""
    if comm.is_main_process():
        path = Path(str(cfg.train.output_dir)) / "config.yaml"
        save_config(cfg, path)
        logger.info("config saved to %s", path)


def make_output_dir(cfg: DictConfig) -> Path:
    """`train.output_dir`, made if it is not there.

    Raises:
        InputFileError: it cannot be made or written.
    """
    folder = Path(str(cfg.train.output_dir)).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        reason = "a file is in the way" if isinstance(e, FileExistsError) else e.strerror
        raise InputFileError(f"cannot make train.output_dir {folder}: {reason}") from e
    if not os.access(folder, os.W_OK):
        raise InputFileError(f"train.output_dir {folder} is not writable")
    return folder


def run_device(cfg: DictConfig) -> torch.device:
    """The device of this rank."""
    device = torch.device(str(cfg.train.device))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def newest_checkpoint(cfg: DictConfig) -> str:
    """The checkpoint of `train.output_dir` that a resume would continue from.

    Raises:
        InputFileError: there is none, or none is good.
    """
    folder = Path(str(cfg.train.output_dir)).expanduser()
    found = newest_good(folder, lambda file: check_archive(file, required=True))
    if found is None:
        raise InputFileError(f"train.output_dir {folder} holds no checkpoint of a run")
    return str(found[0])


def _check_device(cfg: DictConfig) -> None:
    """Decide `train.device` where it is open, and refuse one that is not there."""
    if not cfg.train.device:
        cfg.train.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(str(cfg.train.device))
    except RuntimeError as e:
        raise InputError(f"train.device is {cfg.train.device!r}, expected cuda or cpu") from e
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"train.device is {cfg.train.device!r}, but torch sees no CUDA device")
    world_size = comm.get_world_size()
    if world_size > 1 and device.type == "cpu" and torch.cuda.is_available():
        raise InputError(
            "several processes on the CPU need CUDA_VISIBLE_DEVICES='' where CUDA is present"
        )
    logger.info("device %s, %d process%s", device, world_size, "es" if world_size > 1 else "")


def prepare_environment(train: DictConfig) -> None:
    """Variables that CUDA reads when it starts; to be called before any process touches it."""
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _set_torch_switches(train: DictConfig) -> None:
    if train.num_threads is not None:
        if int(train.num_threads) < 1:
            raise InputError(f"train.num_threads must be at least 1, got {train.num_threads}")
        torch.set_num_threads(int(train.num_threads))
    torch.backends.cudnn.benchmark = bool(train.cudnn_benchmark) and not train.deterministic
    if train.float32_precision:
        known = ("highest", "high", "medium")
        if train.float32_precision not in known:
            raise InputError(
                f"train.float32_precision is {train.float32_precision!r}, expected {known} or ''"
            )
        torch.set_float32_matmul_precision(train.float32_precision)
    if train.deterministic:
        prepare_environment(train)
        torch.use_deterministic_algorithms(True, warn_only=train.deterministic != "strict")
        torch.backends.cudnn.deterministic = True


def _open_log(output_dir: Path) -> None:
    """Log to the console and to this run's file, however many runs this process has seen."""
    rank = comm.get_rank()
    file = output_dir / ("log.txt" if rank == 0 else f"log.txt.rank{rank}")
    for name in ["vss2", "fvcore"] + (["detectron2"] if BACKEND == "detectron2" else []):
        handlers = logging.getLogger(name).handlers
        written = {h: _log_file(h) for h in handlers}
        for handler, other in written.items():
            if other is not None and other != file.resolve():
                logging.getLogger(name).removeHandler(handler)
        if file.resolve() not in written.values():
            setup_logger(
                str(output_dir),
                distributed_rank=rank,
                name=name,
                abbrev_name=name,
                configure_stdout=not any(_writes_to_console(h) for h in handlers),
            )
        for handler in handlers:
            if _log_file(handler) is not None:
                stop_when_disk_is_full(handler)
    logging.getLogger(TrainerBase.__module__).addFilter(SHORT_ERRORS)


def _log_file(handler: logging.Handler) -> Path | None:
    """The run's log file that `handler` writes, if it writes one."""
    name = getattr(getattr(handler, "stream", None), "name", None)
    is_log = isinstance(name, str) and Path(name).name.startswith("log.txt")
    return Path(str(name)).resolve() if is_log else None


def _writes_to_console(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout


def _log_header() -> None:
    from vss2.env import env_report

    if comm.is_main_process():
        logger.info("environment:\n%s", env_report())
        logger.info("command: %s", shlex.join(sys.argv))


def _fill_loader_nodes(cfg: DictConfig, output_dir: Path) -> None:
    """The seed of the training data and the evaluators' folder, where the config leaves them."""
    loaders = cfg.get("dataloader") or {}
    train = loaders.get("train")
    if isinstance(train, DictConfig) and train.get("seed") is None and _takes(train, "seed"):
        train.seed = int(cfg.train.seed)
    evaluators = loaders.get("evaluator")
    if not isinstance(evaluators, DictConfig):
        return
    named = {"": evaluators} if "_target_" in evaluators else evaluators
    for name, node in named.items():
        if node.get("output_dir") is None and _takes(node, "output_dir"):
            node.output_dir = str(output_dir / "inference" / str(name))


def _takes(node: Any, argument: str) -> bool:
    """Whether the target of `node` has an argument of that name."""
    import inspect

    from vss2.d2 import locate

    target = node.get("_target_")
    target = locate(target) if isinstance(target, str) else target
    try:
        return argument in inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False
