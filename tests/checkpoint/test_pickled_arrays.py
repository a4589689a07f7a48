"""Checkpoints of detectron2's model zoo: plain pickles of NumPy arrays."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from vss2.checkpoint import model_state, read_checkpoint
from vss2.errors import InputError, InputFileError


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_come_back_as_tensors(tmp_path: Path, protocol: int) -> None:
    weights = OrderedDict(
        [("a.weight", np.arange(6, dtype=np.float32).reshape(2, 3)), ("a.count", np.int64(3))]
    )
    content = {"model": weights, "__author__": "third party", "matching_heuristics": True}
    path = write(tmp_path / "model_final_94dc52.pkl", content, protocol)
    read = read_checkpoint(path)
    assert read["__author__"] == "third party"
    state = model_state(read)
    torch.testing.assert_close(state["a.weight"], torch.arange(6.0).reshape(2, 3))


def test_code_is_refused_and_named(tmp_path: Path) -> None:
    made = tmp_path / "made"
    path = write(tmp_path / "bad.pkl", {"model": {"a": Harmful(made)}})
    with pytest.raises(InputError, match=r"could run code when loaded: \w+\.mkdir"):
        read_checkpoint(path)
    assert not made.exists()


def test_a_file_of_torch_under_that_suffix_is_read(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "model.pkl")
    assert model_state(read_checkpoint(tmp_path / "model.pkl"))["a"].tolist() == [1.0, 1.0]


def test_damaged_and_other_content_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.pkl", {"model": {"a": np.ones(100)}})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputFileError, match="truncated or no checkpoint"):
        read_checkpoint(path)
    with pytest.raises(InputError, match="holds a list, expected a dict"):
        read_checkpoint(write(tmp_path / "list.pkl", [1, 2]))
