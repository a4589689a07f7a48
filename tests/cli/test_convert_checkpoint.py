"""`vss2 convert`: layouts, files and the report of every key."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vss2.checkpoint import load_weights
from vss2.cli import convert_checkpoint as tool
from vss2.errors import InputError
from vss2.modeling.backbone import MixTransformer
from vss2.modeling.segformer import SegFormer

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "segformer/segformer_toy"


class Old(nn.Module):
    """A model whose published layout has another name, a joint tensor and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        self.c = nn.Linear(2, 1)

    def convert_checkpoint(self, state: Mapping[str, torch.Tensor]):
        out = {n.replace("head.", "c."): v for n, v in state.items() if n not in ("ab", "steps")}
        if "ab" in state:
            out["a.weight"], out["b.weight"] = state["ab"][:2], state["ab"][2:]
        return out, {"steps": "a counter"} if "steps" in state else {}

    def published_checkpoint(self, state: Mapping[str, torch.Tensor]):
        joint = torch.cat([state["a.weight"], state["b.weight"]])
        return {"network": {"ab": joint, "head.weight": state["c.weight"]} | {
            "head.bias": state["c.bias"]}}  # fmt: skip


@pytest.fixture(scope="module")
def segformer() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return SegFormer(backbone=MixTransformer("b0"), num_classes=12).state_dict()


@pytest.fixture
def old_config(tmp_path: Path) -> str:
    """A config of `Old`."""
    config = tmp_path / "old.py"
    config.write_text(f"from vss2.d2.config import LazyCall as L\nmodel = L('{__name__}.Old')()\n")
    return str(config)


def convert(tmp_path: Path, *arguments: str) -> dict:
    """Runs the tool; returns its report."""
    report = tmp_path / "report.json"
    assert tool.main([*arguments, "--report", str(report), "--overwrite"]) == 0
    return json.loads(report.read_text())


def fails(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert tool.main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def keys_of(report: dict, status: str) -> dict[str, str]:
    return {k["source"]: k["target"] for k in report["keys"] if k["status"] == status}


def test_wrapped_published_file_to_safetensors(
    tmp_path: Path, segformer: dict[str, torch.Tensor], capsys
) -> None:
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    wrapped = {f"module.{name}": value for name, value in segformer.items()}
    torch.save({"state_dict": wrapped, "meta": {"epoch": 3}, "optimizer": {"state": {}}}, source)
    report = convert(tmp_path, "--config-file", CONFIG, "--input", str(source),
                     "--output", str(target))  # fmt: skip
    written = load_file(target)
    assert written.keys() == segformer.keys()
    assert all(torch.equal(written[name], value) for name, value in segformer.items())
    assert keys_of(report, "renamed") == {f"module.{name}": name for name in segformer}
    assert keys_of(report, "ignored") == {"meta": "", "optimizer": ""}
    assert sum(report["counts"].values()) == len(report["keys"]) == len(segformer) + 2
    out = capsys.readouterr().out
    assert f"{len(segformer) + 2} keys: {len(segformer)} renamed, 2 ignored" in out
    assert "module.decode_head.linear_pred.bias" in out
    assert out.endswith(f"written: {target}\n")


def test_there_and_back(tmp_path: Path, segformer: dict[str, torch.Tensor]) -> None:
    first, published, last = (tmp_path / n for n in ("a.pth", "b.pth", "c.safetensors"))
    torch.save({"model": segformer, "iteration": 7}, first)
    report = convert(tmp_path, "--config-file", CONFIG, "--to", "published", "--input", str(first),
                     "--output", str(published))  # fmt: skip
    content = torch.load(published, weights_only=True)
    assert content.keys() == {"state_dict", "meta"}
    assert content["state_dict"].keys() == segformer.keys()
    assert content["meta"]["CLASSES"][:2] == ["sky", "wall"]
    assert len(content["meta"]["PALETTE"]) == 12
    assert report["counts"]["kept"] == len(segformer)
    convert(tmp_path, "--config-file", CONFIG, "--input", str(published), "--output", str(last))
    again = load_file(last)
    assert all(torch.equal(again[name], value) for name, value in segformer.items())


def test_without_config_names_stay(tmp_path: Path) -> None:
    source, target = tmp_path / "in.pth", tmp_path / "out.pth"
    state = {"module.x": torch.ones(2, dtype=torch.float16), "module.y": np.arange(3)}
    torch.save({"model": {"model_state": state}, "lr": 0.1}, source)
    report = convert(tmp_path, "--input", str(source), "--output", str(target))
    written = torch.load(target, weights_only=True)
    assert written.keys() == {"model"}
    assert written["model"]["x"].dtype == torch.float16
    assert written["model"]["y"].tolist() == [0, 1, 2]
    assert keys_of(report, "renamed") == {"module.x": "x", "module.y": "y"}
    assert keys_of(report, "ignored") == {"lr": ""}


def test_names_parts_and_reasons_of_a_converter(tmp_path: Path, old_config: str) -> None:
    model = Old()
    state = {"ab": torch.randn(4, 2), "head.weight": torch.randn(1, 2), "head.bias": torch.ones(1),
             "steps": torch.tensor(3), "extra.head.z": torch.ones(2)}  # fmt: skip
    source, target = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({"network": state}, source)
    report = convert(tmp_path, "--config-file", old_config, "--input", str(source),
                     "--output", str(target))  # fmt: skip
    rows = {(k["source"], k["target"]): k for k in report["keys"]}
    assert rows[("ab", "a.weight")]["status"] == "renamed"
    assert rows[("ab", "b.weight")]["status"] == "renamed"
    assert rows[("head.bias", "c.bias")]["status"] == "renamed"
    assert rows[("steps", "")] == {
        "status": "ignored", "source": "steps", "target": "", "shape": [], "note": "a counter"
    }  # fmt: skip
    assert rows[("extra.head.z", "")]["status"] == "unexpected"
    assert rows[("extra.head.z", "")]["note"] == "as extra.c.z"
    assert len(rows) == 6
    loaded = load_weights(model, target, strict=True)
    assert torch.equal(model.b.weight, state["ab"][2:])
    assert len(loaded.loaded) == 4


def test_published_layout_of_a_converter(tmp_path: Path, old_config: str) -> None:
    model = Old()
    source, target = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({"model": model.state_dict()}, source)
    report = convert(tmp_path, "--config-file", old_config, "--to", "published",
                     "--input", str(source), "--output", str(target))  # fmt: skip
    content = torch.load(target, weights_only=True)
    assert content["network"].keys() == {"ab", "head.weight", "head.bias"}
    assert keys_of(report, "computed") == {"": "ab"}
    assert keys_of(report, "ignored") == {"a.weight": "", "b.weight": ""}
    fresh = Old()
    load_weights(fresh, target, strict=True)
    assert torch.equal(fresh.a.weight, model.a.weight)


def test_report_agrees_with_loading(tmp_path: Path, segformer: dict[str, torch.Tensor]) -> None:
    source, target = tmp_path / "mit.pth", tmp_path / "out.pth"
    backbone = {n[9:]: v for n, v in segformer.items() if n.startswith("backbone.")}
    torch.save(backbone | {"head.weight": torch.ones(5, 5), "stray": torch.ones(1)}, source)
    arguments = ["--config-file", CONFIG, "--input", str(source), "--output", str(target)]
    report = convert(tmp_path, *arguments, "--partial")
    loaded = load_weights(SegFormer(backbone=MixTransformer("b0"), num_classes=12), source)
    assert set(keys_of(report, "renamed").values()) == set(loaded.loaded)
    assert {k["target"] for k in report["keys"] if k["status"] == "missing"} == set(loaded.missing)
    assert set(keys_of(report, "ignored")) == set(loaded.ignored)
    assert len(keys_of(report, "unexpected")) == len(loaded.unexpected) == 1
    reasons = {k["source"]: k["note"] for k in report["keys"] if k["status"] == "ignored"}
    assert reasons == {"head.weight": "classifier of ImageNet"}
    assert torch.load(target, weights_only=True)["model"].keys() == set(loaded.loaded)


def test_what_does_not_fit_is_refused_and_reported(
    tmp_path: Path, segformer: dict[str, torch.Tensor], capsys
) -> None:
    source, target = tmp_path / "in.pth", tmp_path / "out.pth"
    report = tmp_path / "report.json"
    arguments = ["--config-file", CONFIG, "--input", str(source), "--output", str(target)]
    lacking = {n: v for n, v in segformer.items() if n != "decode_head.linear_pred.bias"}
    torch.save(lacking, source)
    error = fails(capsys, *arguments, "--report", str(report))
    assert "does not fill SegFormer" in error
    assert "--partial accepts that" in error
    missing = keys_of(json.loads(report.read_text()), "missing")
    assert missing == {"": "decode_head.linear_pred.bias"}
    torch.save(lacking | {"decode_head.linear_pred.bias": torch.ones(5)}, source)
    error = fails(capsys, *arguments, "--report", str(report), "--overwrite")
    assert "linear_pred.bias (5,) in the file, (12,) in the model" in error
    row = next(k for k in json.loads(report.read_text())["keys"] if k["status"] == "mismatched")
    assert (row["shape"], row["note"]) == ([5], "(12,) expected")
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{tmp}/out.onnx"], "must end in one of .pth, .pt, .safetensors"),
        (["--output", "{tmp}/there.pth"], "there.pth exists; --overwrite replaces it"),
        (["--output", "{tmp}/no/out.pth"], "the folder .*no is missing"),
        (["--output", "{tmp}/o.pth", "--to", "published"], "need --config-file"),
        (["--output", "{tmp}/o.pth", "a=1"], "need --config-file"),
        (["--output", "{tmp}/o.pth", "--key", "ema"], "has no entry 'ema'; it has x"),
        (["--output", "{tmp}/o.pth", "--report", "{tmp}/there.pth"], "--report .* exists"),
    ],
)
def test_bad_arguments(capsys, tmp_path: Path, arguments: list[str], message: str) -> None:
    for name in ("in.pth", "there.pth"):
        torch.save({"x": torch.ones(1)}, tmp_path / name)
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    error = fails(capsys, "--input", str(tmp_path / "in.pth"), *arguments)
    assert re.search(message, error), error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_models_that_cannot_write_a_published_layout() -> None:
    with pytest.raises(InputError, match="Linear cannot write a published layout"):
        tool.to_published(nn.Linear(1, 1))

    class Lossy(Old):
        def published_checkpoint(self, state):
            return {"head.weight": state["c.weight"] + 1, "head.bias": state["c.bias"]}

    with pytest.raises(InputError, match=r"Lossy writes does not .*: a\.weight, b\.weight, c\."):
        tool.to_published(Lossy())


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch, capsys) -> None:
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    torch.save({"x": torch.ones(1)}, source)
    target.write_bytes(b"before")

    def fail(state, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tool, "save_file", fail)
    error = fails(capsys, "--input", str(source), "--output", str(target), "--overwrite")
    assert "No space left on device" in error
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys) -> None:
    source = tmp_path / "in.pth"
    torch.save({"x": torch.ones(1), "args": Namespace(a=1)}, source)
    arguments = ["--input", str(source), "--output", str(tmp_path / "out.pth")]
    assert "argparse.Namespace" in fails(capsys, *arguments)
    assert keys_of(convert(tmp_path, *arguments, "--trust"), "ignored") == {"args": ""}


def test_tool_runs_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "convert_checkpoint.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--to published" in done.stdout
    assert "vss2 convert --config-file segformer/segformer_toy" in done.stdout
