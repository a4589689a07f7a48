"""Checkpoints: read without executing them, fitted to a model, written atomically.

A checkpoint of another publisher is unwrapped, freed of wrapper prefixes and, where the model
knows how, renamed from its published layout (`model.convert_checkpoint`). Whatever does not fit
is reported; nothing is skipped in silence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from .checkpoint_folder import (
    has_checkpoint,
    newest_good,
    remove_leftovers,
    resumable_files,
    write_tag,
)
from .checkpoint_io import (
    atomic_write,
    few,
    first_line,
    plain,
    read_checkpoint,
    read_on_all_ranks,
)
from .d2.checkpoint import DetectionCheckpointer
from .errors import InputError, InputFileError

WRAPPERS = ("model", "state_dict", "model_state", "network")

__all__ = ["LoadReport", "VideoCheckpointer", "load_weights", "model_state", "read_checkpoint"]

logger = getLogger(__name__)


class LoadReport(NamedTuple):
    """What of a checkpoint went where.

    Attributes:
        loaded: names of the model's tensors that were filled.
        missing: names of the model's tensors that the checkpoint lacks.
        unexpected: names in the checkpoint that the model lacks.
        mismatched: (name, shape in the checkpoint, shape in the model).
        ignored: names in the checkpoint that the model leaves out on purpose.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    ignored: list[str]

    def summary(self) -> str:
        """One line, such as "loaded 176 of 178 tensors; missing 2: a, b"."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        parts = [f"loaded {len(self.loaded)} of {total} tensors"]
        for word, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("ignored", self.ignored),
        ):
            if names:
                parts.append(f"{word} {len(names)}: {few(names)}")
        if self.mismatched:
            parts.append(f"of another shape {len(self.mismatched)}: {_shapes(self.mismatched)}")
        return "; ".join(parts)


def model_state(
    checkpoint: Mapping[str, Any], key: str | None = None, source: str = "the checkpoint"
) -> dict[str, torch.Tensor]:
    """The weights inside `checkpoint`, without wrapper dicts and wrapper prefixes.

    Args:
        checkpoint: what `read_checkpoint` returned.
        key: entry that holds the weights; default the first of `WRAPPERS` that is there, else the
            dict itself.
        source: what error messages call it.

    Raises:
        InputError: no such entry, or no tensors in it.
    """
    state: Any = checkpoint
    if key is not None:
        if key not in checkpoint:
            raise InputError(f"{source} has no entry {key!r}; it has {few(list(checkpoint))}")
        state = checkpoint[key]
    else:
        while True:
            inner = next((w for w in WRAPPERS if isinstance(state.get(w), Mapping)), None)
            if inner is None:
                break
            state = state[inner]
    tensors = {}
    for name, value in state.items() if isinstance(state, Mapping) else ():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(value, torch.Tensor):
            tensors[str(name).replace("_orig_mod.", "")] = value
    if not tensors:
        found = few([str(name) for name in checkpoint]) or "nothing"
        raise InputError(f"{source} holds no weights; its entries are: {found}")
    while all(name.startswith("module.") for name in tensors):
        tensors = {name[len("module.") :]: value for name, value in tensors.items()}
    return tensors


WeightFiles = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]


def load_weights(
    model: nn.Module,
    path: WeightFiles,
    key: str | None = None,
    rename: Sequence[tuple[str, str]] = (),
    strict: bool = False,
    trust: bool = False,
    allow_mismatched: bool = False,
    collective: bool = False,
) -> LoadReport:
    """Fill `model` from a checkpoint. On an error the model is left as it was.

    Two optional methods let a model help: `convert_checkpoint(state) -> state` (or `(state,
    ignored names)`) renames a published layout, and `check_loaded(report)` refuses what the model
    knows to be incomplete, by raising InputError.

    Args:
        model: the module, not wrapped for distributed training.
        path: see `read_checkpoint`; or such a path by part of the model, whose name then stands in
            front of the names in its file ("fine" makes "conv1.weight" "fine.conv1.weight").
        key: entry that holds the weights; default: found by name.
        rename: (regular expression, replacement) pairs, applied in order to every name.
        strict: every tensor must fit, none may be left over.
        trust: see `read_checkpoint`.
        allow_mismatched: leave tensors whose shapes differ as initialised instead of refusing.
        collective: every rank of a run makes this call; see `read_on_all_ranks`.

    Raises:
        InputError: nothing fits, shapes differ, or `strict` and not all fits. The message says
            how many names matched and which did not.
    """
    state: Mapping[str, torch.Tensor]
    source = f"checkpoint {path}"
    if isinstance(path, Mapping):
        source = "the checkpoints " + ", ".join(f"{part}: {file}" for part, file in path.items())
        state = {
            f"{part}.{name}": value
            for part, file in path.items()
            for name, value in _file_state(file, key, trust, collective).items()
        }
    else:
        state = _file_state(path, key, trust, collective)
    for pattern, replacement in rename:
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    state, ignored = _converted(model, state)
    report, fitting = _match(model, state, ignored)
    _check_report(model, report, state, source, strict, allow_mismatched)
    check = getattr(model, "check_loaded", None)
    if check is not None:
        check(report)
    model.load_state_dict(fitting, strict=False)
    level = "warning" if report.missing or report.unexpected or report.mismatched else "info"
    getattr(logger, level)("%s: %s", source, report.summary())
    return report


def _file_state(
    path: str | os.PathLike[str], key: str | None, trust: bool, collective: bool
) -> dict[str, torch.Tensor]:
    content = _read_shared(path, trust) if collective else read_checkpoint(path, trust)
    return model_state(content, key, f"checkpoint {path}")


def _read_shared(path: str | os.PathLike[str], trust: bool) -> dict[str, Any]:
    found = read_on_all_ranks(path, trust)
    assert found is not None
    return found[1]


def _converted(
    model: nn.Module, state: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, torch.Tensor], list[str]]:
    convert = getattr(model, "convert_checkpoint", None)
    if convert is None:
        return state, []
    result = convert(state)
    if isinstance(result, tuple):
        return result[0], list(result[1])
    kept = {value.untyped_storage().data_ptr() for value in result.values()}
    # A tensor that is neither there by name nor by memory was left out by the converter.
    left_out = [
        name
        for name, value in state.items()
        if name not in result and value.untyped_storage().data_ptr() not in kept
    ]
    return result, left_out


def _match(
    model: nn.Module, state: Mapping[str, torch.Tensor], ignored: list[str]
) -> tuple[LoadReport, dict[str, torch.Tensor]]:
    """The report, and those tensors of `state` that fit."""
    own = model.state_dict()
    fitting, mismatched = {}, []
    for name, value in state.items():
        if name not in own:
            continue
        if own[name].ndim == 0 and value.shape == (1,):
            value = value[0]  # old releases wrote scalars so, and torch reads them
        if own[name].shape == value.shape:
            fitting[name] = value
        else:
            mismatched.append((name, tuple(value.shape), tuple(own[name].shape)))
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    return LoadReport(list(fitting), missing, unexpected, mismatched, ignored), fitting


def _check_report(
    model: nn.Module,
    report: LoadReport,
    state: Mapping[str, torch.Tensor],
    source: str,
    strict: bool,
    allow_mismatched: bool,
) -> None:
    kind = type(model).__name__
    if not report.loaded and not report.mismatched:
        raise InputError(
            f"{source} is not for this model: none of its {len(state)} tensors is one of "
            f"{kind}'s {len(report.missing)}. It has {few(list(state))}; "
            f"the model has {few(report.missing)}"
        )
    if report.mismatched and (strict or not allow_mismatched or not report.loaded):
        total = len(report.loaded) + len(report.mismatched)
        raise InputError(
            f"{source} does not fit {kind}: {len(report.mismatched)} of {total} tensors of the "
            f"same name have another shape: {_shapes(report.mismatched)}"
        )
    if strict and (report.missing or report.unexpected):
        raise InputError(f"{source} does not fit {kind} whole: {report.summary()}")


class VideoCheckpointer(DetectionCheckpointer):
    """Saves and resumes a run: atomic files, safe loading, complete restoration.

    Every rank must call `save`, since the state of some checkpointables is gathered, and the
    methods that load; rank 0 writes.
    A file holds "model", one entry per checkpointable and the extra arguments of `save`, all made
    of tensors, numbers, strings, dicts, lists and tuples.

    Args:
        model: the module; a distributed wrapper is taken off.
        save_dir: where files go.
        save_to_disk: default: only rank 0 writes.
        trust: see `read_checkpoint`.
        tag: whether a save becomes the file that a resume continues from.
        **checkpointables: objects with `state_dict` and `load_state_dict`.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        trust: bool = False,
        tag: bool = True,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.trust = trust
        self.tag = tag
        self.saved_iteration: int | None = None
        self.resumed_from = ""
        if save_dir and self.save_to_disk:
            remove_leftovers(Path(save_dir))

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `<save_dir>/<name>.pth` and, where tagging is on, point a resume to it.

        Raises:
            InputFileError: it cannot be written; what was there before is left as it was.
        """
        data: dict[str, Any] = {"model": self.model.state_dict()}
        for key, checkpointable in self.checkpointables.items():
            data[key] = checkpointable.state_dict()
        data.update(kwargs)
        if self.save_dir and self.save_to_disk:
            content = plain(data, "checkpoint")
            file = Path(self.save_dir) / f"{name}.pth"
            # Through a file object torch passes the disk's own error on.
            with atomic_write(file) as temporary, temporary.open("wb") as f:
                torch.save(content, f)
            logger.info("saved checkpoint %s", file)
            if self.tag:
                self.tag_last_checkpoint(file.name)
        self.saved_iteration = kwargs.get("iteration")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Point a resume to this file of `save_dir`."""
        write_tag(Path(self.save_dir), last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether a run has saved in `save_dir`."""
        return bool(self.save_dir) and has_checkpoint(Path(self.save_dir))

    def get_checkpoint_file(self) -> str:
        """The file that a resume looks at first; "" for none."""
        files = resumable_files(Path(self.save_dir)) if self.save_dir else []
        return str(files[0]) if files else ""

    def resume(self) -> str:
        """Restore everything from the newest good checkpoint of `save_dir`; for every rank.

        A damaged file is passed over for the one before it, which the log says.

        Returns:
            The file, "" where no run has saved.

        Raises:
            InputError: no file is good, one would execute code, or it is that of another config.
        """
        folder = Path(self.save_dir)
        found = read_on_all_ranks("", self.trust, lambda: newest_good(folder, self._read_run))
        if found is None:
            return ""
        file, content = found
        self.saved_iteration = self._restore(str(file), content, None).get("iteration")
        self.resumed_from = str(file)
        return self.resumed_from

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """`resume` if a run has saved in `save_dir` and that is wanted, else the weights of `path`.

        Returns:
            The checkpoint's entries that nothing has restored.
        """
        if resume and self.has_checkpoint():
            self.resume()
            return {} if self.saved_iteration is None else {"iteration": self.saved_iteration}
        return self.load(path, checkpointables=[])

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Restore the model and checkpointables; returns the entries that are left.

        Args:
            path: a file; "" loads nothing.
            checkpointables: names to restore; None = all, and then the model must fit whole.

        Raises:
            InputError: see `load_weights`; or the file's optimizer is that of another config.
        """
        if not path:
            return {}
        if checkpointables is not None and not checkpointables:
            load_weights(self.model, path, trust=self.trust, collective=True)
            return {}
        return self._restore(path, _read_shared(path, self.trust), checkpointables)

    def _read_run(self, file: Path) -> dict[str, Any]:
        content = read_checkpoint(file, self.trust)
        if not isinstance(content.get("model"), Mapping):
            raise InputFileError(f"{file} is no checkpoint of a run: it has no entry 'model'")
        return content

    def _restore(
        self, path: str, content: dict[str, Any], checkpointables: list[str] | None
    ) -> dict[str, Any]:
        """Apply what was read; returns what is left of it."""
        content = dict(content)
        state = content.pop("model", None)
        if not isinstance(state, Mapping):
            raise InputError(f"{path} is no checkpoint of a run: it has no entry 'model'")
        report, fitting = _match(self.model, state, [])
        _check_report(self.model, report, state, f"checkpoint {path}", True, False)
        self.model.load_state_dict(fitting)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key not in content:
                logger.warning("%s has no entry %r: that part starts afresh", path, key)
                continue
            try:
                self.checkpointables[key].load_state_dict(content.pop(key))
            except (ValueError, KeyError, TypeError) as e:
                raise InputError(
                    f"checkpoint {path}: cannot restore {key!r} ({first_line(e)}). "
                    "A run can only be resumed with the config that it was started with"
                ) from e
        return content


def _shapes(
    mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]], limit: int = 4
) -> str:
    rows = [f"{name} {there} in the file, {here} in the model" for name, there, here in mismatched]
    return "; ".join(rows[:limit]) + (
        f"; and {len(rows) - limit} more" if len(rows) > limit else ""
    )
