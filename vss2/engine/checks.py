"""What can be wrong with a config, found before the first iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from torch import nn

from vss2 import checkpoint_folder
from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.errors import InputError, InputFileError, did_you_mean

from .nonfinite import MODES
from .trainer import DTYPES

TRAINING_KEYS = ("model", "optimizer", "lr_multiplier", "dataloader.train")
EVALUATION_KEYS = ("model", "dataloader.test", "dataloader.evaluator")


def check_config(cfg: DictConfig, *, training: bool, resume: bool = False) -> None:
    """Check the keys, numbers, names and files of `cfg`; nothing is built or read.

    Args:
        cfg: completed by `complete_config`.
        training: whether it is to be trained, or evaluated only.
        resume: whether a checkpoint of the run is used where there is one; `train.init_checkpoint`
            is then not read.

    Raises:
        InputError: names the key and what was expected.
    """
    required = TRAINING_KEYS if training else EVALUATION_KEYS
    for key in required:
        if not isinstance(_at(cfg, key), DictConfig):
            raise InputError(f"the config has no {key!r}; needed are {', '.join(required)}")
    loaders = cfg.dataloader
    if ("test" in loaders) != ("evaluator" in loaders):
        raise InputError("dataloader.test and dataloader.evaluator belong together; one is missing")
    if training:
        _check_numbers(cfg.train)
    if not (resume and has_checkpoint(cfg)):
        _check_init_checkpoint(cfg.train)
    for name in dataset_names(cfg):
        check_dataset_name(name)


def has_checkpoint(cfg: DictConfig) -> bool:
    """Whether `train.output_dir` holds a run that can be resumed."""
    return checkpoint_folder.has_checkpoint(Path(str(cfg.train.output_dir)).expanduser())


def check_classes(cfg: DictConfig, model: nn.Module) -> None:
    """Compare the number of classes of `model` with those of the data sets.

    Raises:
        InputError: they differ; names both.
    """
    ours = getattr(model, "num_classes", None)
    if ours is None:
        return
    for name in dataset_names(cfg):
        classes = MetadataCatalog.get(name).get("stuff_classes", None)
        if classes is not None and len(classes) != ours:
            raise InputError(
                f"the model has {ours} classes (model.num_classes), "
                f"but the data set {name!r} has {len(classes)}"
            )


def check_dataset_name(name: str) -> None:
    """
    Raises:
        InputError: no data set of that name is registered.
    """
    from vss2.data.datasets import register_all

    register_all()
    known = sorted(DatasetCatalog.list())
    if name not in known:
        hint = did_you_mean(name, known) or f" Known: {', '.join(known)}."
        raise InputError(f"unknown data set {name!r}.{hint}")


def dataset_names(cfg: DictConfig) -> list[str]:
    """The registered data sets that `cfg` names in its loaders and evaluators, each once."""
    loaders = cfg.get("dataloader") or {}
    names: dict[str, None] = {}
    for part in ("train", "test", "evaluator"):
        node = loaders.get(part)
        if not isinstance(node, DictConfig):
            continue
        for one in [node] if "_target_" in node else list(node.values()):
            for key in ("dataset", "dataset_name"):
                names.update(dict.fromkeys(_names(one.get(key))))
    return list(names)


def _names(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, (ListConfig, list, tuple)):
        return [item for item in value if isinstance(item, str)]
    if isinstance(value, DictConfig):  # a call that takes the names, as in detectron2's configs
        return _names(value.get("names"))
    return []


def _check_numbers(train: DictConfig) -> None:
    gathering, keep = train.gather_metric_period, train.checkpointer.max_to_keep
    ranges: Sequence[tuple[str, Any, int]] = (
        ("max_iter", train.max_iter, 1),
        ("eval_period", train.eval_period, 0),
        ("log_period", train.log_period, 1),
        ("checkpointer.period", train.checkpointer.period, 1),
        ("checkpointer.max_to_keep", 1 if keep is None else keep, 1),
        ("grad_accum", train.grad_accum, 1),
        ("nonfinite_limit", train.nonfinite_limit, 1),
        ("gather_metric_period", 1 if gathering is None else gathering, 1),
    )
    for key, value, least in ranges:
        if type(value) is not int or value < least:
            raise InputError(f"train.{key} must be an integer of at least {least}, got {value!r}")
    clip, ema = train.clip_grad, train.ema
    if not _is_number(clip.max_norm) or not clip.max_norm > 0:
        raise InputError(f"train.clip_grad.max_norm must be above 0, got {clip.max_norm!r}")
    if not _is_number(clip.norm_type) or not clip.norm_type > 0:
        raise InputError(
            f"train.clip_grad.norm_type must be a number above 0 or .inf, got {clip.norm_type!r}"
        )
    if not _is_number(ema.decay) or not 0 <= ema.decay < 1:
        raise InputError(f"train.ema.decay must lie between 0 and 1, got {ema.decay!r}")
    choices: Sequence[tuple[str, Any, tuple[Any, ...]]] = (
        ("amp.dtype", train.amp.dtype, tuple(DTYPES)),
        ("nonfinite", train.nonfinite, MODES),
        ("deterministic", train.deterministic, (True, False, "strict")),
    )
    for key, value, known in choices:
        if value not in known:
            raise InputError(
                f"train.{key} is {value!r}, expected one of {', '.join(map(str, known))}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def weight_files(train: DictConfig) -> str | dict[str, str]:
    """`train.init_checkpoint`: a path or URL, or such by part of the model."""
    given = train.init_checkpoint
    if isinstance(given, Mapping):
        return {str(part): str(path) for part, path in given.items()}
    return str(given or "")


def _check_init_checkpoint(train: DictConfig) -> None:
    given = weight_files(train)
    for path in [given] if isinstance(given, str) else given.values():
        if path and "://" not in path and not Path(path).expanduser().is_file():
            raise InputFileError(
                f"train.init_checkpoint {path!r} does not exist (seen from "
                f"{Path.cwd()}); give a file, a URL, or '' to start from random weights"
            )


def _at(cfg: DictConfig, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part) if isinstance(node, DictConfig) else None
    return node
