"""The copy of a config's sources beside the results of its run."""

from __future__ import annotations

from pathlib import Path

from vss2.config import config_root, load_config
from vss2.engine.config_copy import config_sources, copy_config_sources


def tree(folder: Path) -> list[str]:
    files = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in files if not name.startswith("."))


def make(folder: Path) -> Path:
    (folder / "models").mkdir(parents=True)
    (folder / "base.py").write_text("train = {'max_iter': 3}\n")
    (folder / "unused.py").write_text("raise SystemExit\n")
    config = folder / "models" / "big.py"
    config.write_text(
        "from vss2.config import get_config\nfrom ..base import train\n"
        "dataloader = get_config('common/data/toy.py').dataloader\n"
    )
    return config


def test_the_copy_is_what_the_config_is_made_of_and_loads(tmp_path: Path) -> None:
    config = make(tmp_path / "mine")
    copy = copy_config_sources(config, tmp_path / "run" / "configs")
    assert copy == tmp_path / "run" / "configs" / "models" / "big.py"
    assert tree(tmp_path / "run" / "configs") == [
        "base.py",
        "models/big.py",
        "vss2/common/data/toy.py",
        "vss2/common/data/vspw.py",
    ]
    assert load_config(copy).train.max_iter == 3


def test_own_configs_keep_their_places(tmp_path: Path) -> None:
    config = config_root() / "segformer" / "segformer_toy.py"
    copy_config_sources(config, tmp_path / "configs")
    assert {"segformer/segformer_toy.py", "common/train.py", "common/data/vspw.py"} <= set(
        tree(tmp_path / "configs")
    )


def test_a_second_start_replaces_the_copy_and_strangers_are_left_alone(tmp_path: Path) -> None:
    config = make(tmp_path / "mine")
    folder = tmp_path / "run" / "configs"
    copy_config_sources(config, folder)
    (config.parents[1] / "base.py").write_text("train = {'max_iter': 4}\n")
    copy = copy_config_sources(config, folder)
    assert load_config(copy).train.max_iter == 4
    assert copy_config_sources(copy, folder) is None  # a run of its own copy
    assert load_config(copy).train.max_iter == 4

    other = tmp_path / "other" / "configs"
    other.mkdir(parents=True)
    (other / "base.py").write_text("train = {'max_iter': 5}\n")
    assert copy_config_sources(config, other) is None
    assert tree(other) == ["base.py"]


def test_a_yaml_config_is_copied_alone(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {max_iter: 1}\n")
    assert config_sources(tmp_path / "a.yaml") == [tmp_path / "a.yaml"]
    assert (
        copy_config_sources(tmp_path / "a.yaml", tmp_path / "c").read_text()
        == (tmp_path / "a.yaml").read_text()
    )
