"""Configs by name and path, and saved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from vss2.config import (
    config_root,
    get_config,
    known_configs,
    load_config,
    resolve_config,
    save_config,
)
from vss2.d2.config import LazyCall as L
from vss2.d2.config import LazyConfig, instantiate
from vss2.d2.solver import LRMultiplier, get_default_optimizer_params
from vss2.errors import InputError, InputFileError

ROOT = Path(__file__).resolve().parents[2]


def test_common_configs_are_fresh_copies() -> None:
    first = get_config("common/train.py").train
    first.max_iter = 1
    assert get_config("common/train.py").train.max_iter != 1
    assert (config_root() / "common" / "train.py").is_file()


def test_unknown_common_config_names_close_ones() -> None:
    with pytest.raises(InputFileError, match=r"Did you mean 'common/train\.py'") as caught:
        get_config("common/trian.py")
    assert isinstance(caught.value, RuntimeError)


def test_every_setting_of_a_run_is_explained() -> None:
    lines = (config_root() / "common" / "train.py").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("    ") and "=" in line and not line.strip().startswith("#"):
            assert lines[number - 1].strip().startswith("#"), line


@pytest.mark.parametrize("suffix", ["", ".py"])
def test_path_with_and_without_suffix(tmp_path: Path, monkeypatch, suffix: str) -> None:
    (tmp_path / "mine.py").write_text("model = {'a': 1}\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    assert resolve_config(f"mine{suffix}") == tmp_path / "mine.py"
    assert load_config(tmp_path / f"mine{suffix}") == {"model": {"a": 1}}


def test_own_config_by_short_name() -> None:
    names = [name for name in known_configs() if name.startswith("segformer/")]
    assert names
    assert not any(name.startswith("common/") for name in known_configs())
    for name in names:
        assert resolve_config(name) == (config_root() / f"{name}.py").resolve()


def test_two_hits_are_an_error(tmp_path: Path, monkeypatch) -> None:
    name = next(name for name in known_configs() if name.startswith("segformer/"))
    other = tmp_path / f"{name}.py"
    other.parent.mkdir()
    other.write_text("model = {}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="ambiguous") as caught:
        resolve_config(name)
    assert str(other) in str(caught.value)
    assert resolve_config(f"./{name}") == other


def test_unknown_name_lists_close_ones() -> None:
    name = next(name for name in known_configs() if name.startswith("segformer/"))
    with pytest.raises(InputFileError, match=f"Did you mean .*{name}"):
        load_config(name + "x")


def test_foreign_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"weights.pth must end in one of .py"):
        load_config(tmp_path / "weights.pth")


def test_syntax_error_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("a = 1\nmodel = (\n")
    with pytest.raises(InputError, match=r"bad.py has a syntax error in line \d") as caught:
        load_config(tmp_path / "bad.py")
    assert "\n" not in str(caught.value)


def test_missing_key_of_another_config_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from vss2.config import get_config\n"
        "train = get_config('common/train.py').train.no_such_key\n"
    )
    with pytest.raises(InputError, match=r"bad.py asks for a key that is missing: .*no_such_key"):
        load_config(tmp_path / "bad.py")


def write_project(folder: Path, package: str) -> Path:
    configs = folder / package / "configs" / "deep"
    configs.mkdir(parents=True)
    (folder / package / "__init__.py").write_text("VALUE = 41\n")
    (configs / "one.py").write_text(f"from {package} import VALUE\nmodel = {{'value': VALUE}}\n")
    return configs / "one.py"


def test_project_of_a_third_party_needs_no_install(tmp_path: Path, monkeypatch) -> None:
    path = write_project(tmp_path, "vss2_test_plugin_a")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_config(path).model.value == 41
    assert sys.path[0] == str(tmp_path)


def test_projects_and_entry_points_have_short_names(tmp_path: Path) -> None:
    write_project(tmp_path, "vss2_test_plugin_b")
    info = tmp_path / "vss2_test_plugin_b-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vss2_test_plugin_b\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text("[vss2.projects]\nplugb = vss2_test_plugin_b\n")
    script = (
        "from vss2.config import known_configs, load_config\n"
        "assert load_config('plugb/deep/one').model.value == 41\n"
        "assert 'plugb/deep/one' in known_configs()\n"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_saved_config_names_no_backend_and_loads_back(tmp_path: Path) -> None:
    cfg = DictConfig(
        {
            "optimizer": L(torch.optim.SGD)(
                params=L(get_default_optimizer_params)(base_lr="${..lr}"), lr=0.5
            ),
            "list": [L(LRMultiplier)(max_iter=3), None],
            "named": {"_target_": "vss2.d2._embedded.solver.LRMultiplier"},
            "nothing": None,
            "required": "???",
        },
        flags={"allow_objects": True},
    )
    before = cfg.copy()
    save_config(cfg, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "_embedded" not in text
    assert "detectron2" not in text
    assert text.count("vss2.d2.solver.LRMultiplier") == 2
    assert "'${..lr}'" in text
    assert cfg == before
    again = load_config(tmp_path / "config.yaml")
    model = torch.nn.Linear(2, 2)
    again.optimizer.params.model = model
    assert instantiate(again.optimizer).param_groups[0]["lr"] == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_saved_config_is_replaced_whole(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "config.yaml"
    save_config(DictConfig({"model": {"a": 1}}), path)

    def fail(cfg, filename):
        Path(filename).write_text("half of a")
        raise OSError("disk full")

    monkeypatch.setattr(LazyConfig, "save", staticmethod(fail))
    with pytest.raises(OSError, match="disk full"):
        save_config(DictConfig({"model": {"a": 2}}), path)
    assert load_config(path).model.a == 1


def test_what_yaml_cannot_carry_is_pickled_beside_it(tmp_path: Path) -> None:
    save_config(DictConfig({"model": L(lambda: 3)()}, flags={"allow_objects": True}),
                tmp_path / "config.yaml")  # fmt: skip
    assert (tmp_path / "config.yaml.pkl").is_file()
    assert not list(tmp_path.glob("*.tmp*"))
