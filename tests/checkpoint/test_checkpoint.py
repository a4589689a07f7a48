"""Reading, fitting and writing checkpoints."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from vss2.checkpoint import (
    WRAPPERS,
    VideoCheckpointer,
    load_weights,
    model_state,
    read_checkpoint,
)
from vss2.errors import InputError, InputFileError


def tiny(width: int = 4, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            stem=nn.Linear(2, width), norm=nn.BatchNorm1d(width), head=nn.Linear(width, classes)
        )
    )


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return tiny().state_dict()


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, target: str):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


# reading


def test_loading_never_runs_what_a_checkpoint_holds(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    for kind, name in ((True, "zip.pth"), (False, "legacy.pth")):
        path = tmp_path / name
        content = {"model": {}, "x": Payload(str(target))}
        torch.save(content, path, _use_new_zipfile_serialization=kind)
        with pytest.raises(InputError, match=r"could run code.*train\.trust_checkpoint=true"):
            read_checkpoint(path)
        assert not target.exists()


def test_refusal_lists_the_unsafe_names_and_trust_reads_it(tmp_path: Path, state) -> None:
    path = save({"model": state, "args": argparse.Namespace(a=1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth.*argparse\.Namespace"):
        read_checkpoint(path)
    assert read_checkpoint(path, trust=True)["args"].a == 1


def test_numpy_numbers_and_arrays_are_safe(tmp_path: Path) -> None:
    content = {
        "scalars": [np.float64(1.5), np.int64(3), np.float32(2), np.bool_(True)],
        "array": np.arange(6, dtype=np.uint8).reshape(2, 3),
    }
    back = read_checkpoint(save(content, tmp_path / "a.pth"))
    assert back["scalars"] == [1.5, 3, 2.0, True]
    assert (back["array"] == content["array"]).all()


def test_numpy_of_the_older_naming_is_safe(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"x": np.float64(2.5)}, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(old)
    assert read_checkpoint(path) == {"x": 2.5}


def test_safetensors(tmp_path: Path, state) -> None:
    from safetensors.torch import save_file

    save_file(state, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors").keys() == state.keys()
    assert len(load_weights(tiny(), tmp_path / "a.safetensors", strict=True).loaded) == len(state)
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-8])
    with pytest.raises(InputFileError, match=r"a\.safetensors .* is truncated"):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("keep", [0, 1, 100, 1000, -1])
def test_truncated_file_is_named(tmp_path: Path, state, keep: int) -> None:
    path = save({"model": state}, tmp_path / "cut.pth")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputFileError, match=r"cut\.pth \(\d+ bytes\) is truncated") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_flipped_bytes_are_read_or_refused(tmp_path: Path, state) -> None:
    path = save({"model": state, "iteration": 3}, tmp_path / "flipped.pth")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = []
    for _ in range(60):
        damaged = bytearray(whole)
        for position in rng.integers(len(whole), size=8):
            damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert isinstance(read_checkpoint(path), dict)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) == 60  # every part has its checksum
    assert all(str(path) in message for message in refused)


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(InputFileError, match=r"text\.pth"):
        read_checkpoint(tmp_path / "text.pth")
    with pytest.raises(InputFileError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(InputFileError, match="is a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(InputError, match="holds a list, expected a dict"):
        read_checkpoint(save([1], tmp_path / "list.pth"))
    with (tmp_path / "plain.pth").open("wb") as f:
        pickle.dump({"model": {}}, f)
    with pytest.raises(InputError, match=r"plain\.pth"):
        read_checkpoint(tmp_path / "plain.pth")


# fitting


@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_and_prefixes_fall_away(tmp_path: Path, state, wrapper, prefix) -> None:
    inner = {prefix + name: value for name, value in state.items()}
    content = inner if wrapper is None else {wrapper: inner, "epoch": 3}
    report = load_weights(tiny(), save(content, tmp_path / "a.pth"), strict=True)
    assert sorted(report.loaded) == sorted(state)


def test_weights_arrive(tmp_path: Path, state) -> None:
    model = tiny()
    load_weights(model, save({"state_dict": {"model": state}}, tmp_path / "a.pth"))
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    arrays = {name: value.numpy() for name, value in state.items()}
    assert len(load_weights(tiny(), save(arrays, tmp_path / "b.pth"), strict=True).loaded) == 9


def test_key_and_rename(tmp_path: Path, state) -> None:
    renamed = {f"net/{name}".replace("head.", "classifier."): v for name, v in state.items()}
    path = save({"ema": renamed, "model": {"x": torch.ones(1)}}, tmp_path / "a.pth")
    rename = [(r"^net/", ""), (r"^classifier\.", "head.")]
    assert load_weights(tiny(), path, key="ema", rename=rename, strict=True).unexpected == []
    with pytest.raises(InputError, match="no entry 'swa'; it has ema, model"):
        load_weights(tiny(), path, key="swa")


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    path = save({"backbone.x": torch.ones(1), "y": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"none of its 2 tensors is one of Sequential's 9") as e:
        load_weights(tiny(), path)
    assert "backbone.x" in str(e.value)
    assert "stem.weight" in str(e.value)
    with pytest.raises(InputError, match="holds no weights; its entries are: epoch"):
        load_weights(tiny(), save({"epoch": 3}, tmp_path / "b.pth"))


def test_other_shapes_are_an_error_unless_allowed(tmp_path: Path) -> None:
    path = save(tiny(classes=5).state_dict(), tmp_path / "a.pth")
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"2 of 9 tensors of the same name") as caught:
        load_weights(model, path)
    assert "head.weight (5, 4) in the file, (3, 4) in the model" in str(caught.value)
    assert all(torch.equal(model.state_dict()[n], before[n]) for n in before)
    report = load_weights(model, path, allow_mismatched=True)
    assert [name for name, _, _ in report.mismatched] == ["head.weight", "head.bias"]
    assert torch.equal(model.head.weight, before["head.weight"])
    assert len(report.loaded) == 7
    assert "of another shape 2: head.weight" in report.summary()


def test_strict_wants_all(tmp_path: Path, state) -> None:
    del state["head.bias"]
    state["extra"] = torch.ones(1)
    path = save(state, tmp_path / "a.pth")
    report = load_weights(tiny(), path)
    assert report.missing == ["head.bias"]
    assert report.unexpected == ["extra"]
    text = "loaded 8 of 9 tensors; missing 1: head.bias; unexpected 1: extra"
    assert report.summary() == text
    with pytest.raises(InputError, match=text):
        load_weights(tiny(), path, strict=True)


class Published(nn.Sequential):
    """Knows a layout in which its stem is called `embed`, and a classifier to leave out."""

    pairs = False

    def convert_checkpoint(self, state):
        own = {n.replace("embed.", "stem."): v for n, v in state.items() if "classifier" not in n}
        return (own, {n: "classifier" for n in state if "classifier" in n}) if self.pairs else own

    def check_loaded(self, report):
        if any(name.startswith("stem.") for name in report.missing):
            raise InputError("the stem is incomplete")


@pytest.mark.parametrize("pairs", [False, True])
def test_model_helps_with_its_published_layout(tmp_path: Path, pairs: bool) -> None:
    model = Published(OrderedDict(stem=nn.Linear(2, 4), head=nn.Linear(4, 3)))
    model.pairs = pairs
    content = {
        "embed.weight": torch.ones(4, 2),
        "embed.bias": torch.ones(4),
        "classifier": torch.ones(9),
    }
    report = load_weights(model, save(content, tmp_path / "a.pth"))
    assert report.ignored == ["classifier"]
    assert report.unexpected == []
    assert torch.equal(model.stem.weight, torch.ones(4, 2))
    del content["embed.bias"]
    with pytest.raises(InputError, match="the stem is incomplete"):
        load_weights(model, save(content, tmp_path / "b.pth"))


def test_model_state_drops_what_is_no_tensor() -> None:
    assert list(model_state({"model": {"a": torch.ones(1), "b": 3}})) == ["a"]


# writing


class Counter:
    def __init__(self) -> None:
        self.state: object = {"n": 0}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_saved_content_is_plain_and_comes_back(tmp_path: Path) -> None:
    model, counter = tiny(), Counter()
    counter.state = {
        "betas": DictConfig({"b": [0.9, 0.99]}).b,
        "best": np.float64(0.5),
        "mask": np.array([1, 2], np.int64),
        "nested": (1, ["x", None, {3: True}]),
    }
    checkpointer = VideoCheckpointer(model, str(tmp_path), counter=counter)
    checkpointer.save("one", iteration=4)
    other = VideoCheckpointer(tiny(), str(tmp_path), counter=Counter())
    assert other.load(other.get_checkpoint_file()) == {"iteration": 4}
    back = other.checkpointables["counter"].state
    assert back["betas"] == [0.9, 0.99]
    assert type(back["betas"]) is list
    assert back["best"] == 0.5
    assert back["mask"].tolist() == [1, 2]
    assert back["nested"] == (1, ["x", None, {3: True}])
    assert torch.equal(other.model.stem.weight, model.stem.weight)
    counter.state = {"bad": {"deep": [object()]}}
    with pytest.raises(
        TypeError, match=r"checkpoint\['counter'\]\['bad'\]\['deep'\]\[0\] is a obj"
    ):
        checkpointer.save("two")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "one.pth"]


def test_a_save_that_fails_leaves_the_last_good_one(tmp_path: Path, monkeypatch) -> None:
    checkpointer = VideoCheckpointer(tiny(), str(tmp_path))
    checkpointer.save("one")
    good = (tmp_path / "one.pth").read_bytes()

    def cut_off(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", cut_off)
    for name in ("one", "two"):
        with pytest.raises(InputFileError, match=f"cannot write .*{name}.pth: No space left"):
            checkpointer.save(name)
    assert (tmp_path / "one.pth").read_bytes() == good
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "one.pth")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "one.pth"]


def test_file_is_synced_before_it_gets_its_name_and_before_the_tag(tmp_path, monkeypatch) -> None:
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(Path(b).name), replace(a, b)))
    VideoCheckpointer(tiny(), str(tmp_path)).save("one")
    assert events == ["sync", "one.pth", "sync", "sync", "last_checkpoint", "sync"]


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("model_0000001.pth.tmp", "last_checkpoint.tmp", "notes.tmp", "model.pth"):
        (tmp_path / name).write_text("x")
    VideoCheckpointer(tiny(), str(tmp_path), save_to_disk=False)
    assert len(os.listdir(tmp_path)) == 4
    VideoCheckpointer(tiny(), str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["model.pth", "notes.tmp"]


def test_best_checkpoint_is_not_tagged(tmp_path: Path) -> None:
    VideoCheckpointer(tiny(), str(tmp_path)).save("model_0000001")
    VideoCheckpointer(tiny(), str(tmp_path), tag=False).save("model_best")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_resume_wants_the_same_model(tmp_path: Path) -> None:
    VideoCheckpointer(tiny(), str(tmp_path)).save("one")
    with pytest.raises(InputError, match=r"2 of 9 tensors .*head.weight \(3, 4\) in the file"):
        VideoCheckpointer(tiny(classes=7), str(tmp_path)).resume_or_load("", resume=True)
    save(tiny().state_dict(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match="no checkpoint of a run"):
        VideoCheckpointer(tiny(), str(tmp_path)).load(str(tmp_path / "bare.pth"))


def test_resume_with_another_optimizer_is_explained(tmp_path: Path) -> None:
    model = tiny()
    one = torch.optim.SGD(model.parameters(), lr=1)
    VideoCheckpointer(model, str(tmp_path), optimizer=one).save("one")
    two = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=1)
    with pytest.raises(InputError, match=r"cannot restore 'optimizer'.*with the config that"):
        VideoCheckpointer(model, str(tmp_path), optimizer=two).resume_or_load("", resume=True)
