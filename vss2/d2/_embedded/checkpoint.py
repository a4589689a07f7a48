"""Checkpoints: fvcore's, with the file formats and addresses of detectron2's on top."""

from __future__ import annotations

import collections
import os
import pickle
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer
from torch import nn

from .utils import comm
from .utils.file_io import PathManager

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer"]

_HEURISTICS = "matching_heuristics"


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers, and runs nothing else that a file asks for."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy.core became numpy._core in numpy 2; files come from either.
        canonical = module.replace("numpy._core", "numpy.core")
        allowed = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            # What the running numpy pickles an array and a scalar with.
            ("numpy.core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
            ("numpy.core.multiarray", "scalar"): np.float32(0).__reduce__()[0],
            ("numpy.core.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
        }
        if (canonical, name) not in allowed:
            raise pickle.UnpicklingError(f"A checkpoint may not contain {module}.{name}.")
        return allowed[canonical, name]


class DetectionCheckpointer(Checkpointer):
    """Checkpointer that saves on rank 0, reads `http(s)://` and `detectron2://` addresses, and
    understands the `.pkl` files of detectron2's model zoo and the `.pyth` files of pycls.

    A path may end in `?matching_heuristics=True`: keys are then matched by their ends.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: wrappers for data parallelism are taken off.
            save_dir: where checkpoints are written and looked for; must exist to save.
            save_to_disk: None means on the main process only.
            checkpointables: what else has a state: optimizer, trainer, ...
        """
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._match_ends = False

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint; see fvcore's `Checkpointer.load`.

        Raises:
            AssertionError: there is no such file.
            ValueError: a query other than `matching_heuristics=True` follows the path, or the file
                holds something else than arrays for the model.
        """
        self._match_ends = False
        path = path or ""
        if not os.path.isfile(path):
            path, _, query = path.partition("?")
            queries = parse_qs(query, keep_blank_values=True)
            self._match_ends = queries.pop(_HEURISTICS, ["False"]) == ["True"]
            if queries:
                raise ValueError(f"Unsupported query in the checkpoint path: {sorted(queries)}")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        loaded = torch.load(filename, map_location=torch.device("cpu"))
        if filename.endswith(".pyth"):
            assert "model_state" in loaded, f"{filename} has no 'model_state', as pycls writes it."
            self._match_ends = True
            state = loaded["model_state"]
            return {"model": {k: v for k, v in state.items() if "num_batches_tracked" not in k}}
        if "model" not in loaded:
            loaded = {"model": loaded}
        self._match_ends = bool(loaded.pop(_HEURISTICS, self._match_ends))
        return loaded

    def _load_pickle(self, filename: str) -> dict[str, Any]:
        with PathManager.open(filename, "rb") as file:
            data = _ArrayUnpickler(file, encoding="latin1").load()
        if not ("model" in data and "__author__" in data):
            raise NotImplementedError(
                f"{filename} holds Caffe2 weights, whose names only a full detectron2 can match."
            )
        self.logger.info("Reading a file from '%s'", data["__author__"])
        self._match_ends = bool(data.pop(_HEURISTICS, self._match_ends))
        return data

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if self._match_ends:
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = _match_by_ends(self.model.state_dict(), checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        # Both are constants of the config; a checkpoint without them is whole.
        own_buffers = dict(self.model.named_buffers(recurse=False))
        for name in ("pixel_mean", "pixel_std"):
            if name in own_buffers and name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        # Old checkpoints hold these; they are computed now.
        for name in list(incompatible.unexpected_keys):
            if "anchor_generator.cell_anchors" in name:
                incompatible.unexpected_keys.remove(name)
        return incompatible


def _match_by_ends(
    model_state: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename loaded tensors to the model's keys.

    A model's key takes the loaded key that it ends with (at a dot), the longest one if several
    fit. Loaded keys that no model key takes keep their names, to be reported as unexpected.
    """
    renamed = {}
    used = set()
    for key in model_state:
        parts = key.split(".")
        for start in range(len(parts)):
            end = ".".join(parts[start:])
            if end in loaded:
                renamed[key] = loaded[end]
                used.add(end)
                break
    rest = {key: value for key, value in loaded.items() if key not in used}
    return {**rest, **renamed}
