"""`vss2 list`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vss2 import plugins
from vss2.cli import list as vss2_list
from vss2.config import config_root, known_configs
from vss2.d2.data import DatasetCatalog, MetadataCatalog


def listed(capsys, *arguments: str) -> dict[str, list[dict]]:
    assert vss2_list.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_all_topics_as_json(capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    (tmp_path / "VSPW_480p").mkdir()
    found = listed(capsys)
    assert list(found) == ["configs", "projects", "datasets", "backbones"]
    configs = {row["name"]: row for row in found["configs"]}
    assert configs.keys() == known_configs().keys()
    toy = configs["segformer/segformer_toy"]
    assert toy["about"].startswith("SegFormer B0 from scratch on the toy world")
    assert Path(toy["file"]) == config_root() / "segformer" / "segformer_toy.py"
    sets = {row["name"]: row for row in found["datasets"]}
    assert sets["vspw_val"] == {
        "name": "vspw_val",
        "classes": 124,
        "present": True,
        "folder": str(tmp_path / "VSPW_480p"),
        "note": "",
    }
    assert sets["toy_train"]["present"] is False
    assert sets["toy_train"]["note"] == "makes itself at first use"
    assert list(tmp_path.iterdir()) == [tmp_path / "VSPW_480p"]  # asking makes nothing
    backbones = {row["name"]: row for row in found["backbones"]}
    assert backbones["MixTransformer"]["module"] == "vss2.modeling.backbone.mit"
    assert backbones["MixTransformer"]["about"].endswith(".")


def test_every_config_says_what_it_is() -> None:
    for row in vss2_list.config_rows():
        assert len(row["about"]) > 10, row


def test_projects_with_method_paper_and_commands(capsys, monkeypatch) -> None:
    found = [
        plugins.Project("good", "good_package", Path("good")),
        plugins.Project("bad", "vss2_no_such_package", None),
    ]

    def info(project: plugins.Project) -> plugins.ProjectInfo:
        if project.name == "bad":
            raise ImportError("no module named vss2_no_such_package")
        return plugins.ProjectInfo(name="Good", paper="Nobody, 2020", commands={"x": "a:b"})

    monkeypatch.setattr(plugins, "find_projects", lambda: found)
    monkeypatch.setattr(plugins, "project_info", info)
    good, bad = listed(capsys, "projects")["projects"]
    assert (good["method"], good["paper"], good["commands"]) == ("Good", "Nobody, 2020", ["x"])
    assert good["error"] is None
    assert bad["error"] == "ImportError: no module named vss2_no_such_package"
    vss2_list._import_projects.cache_clear()
    assert "toy_val" in {row["name"] for row in listed_with_warning(capsys)}
    vss2_list._import_projects.cache_clear()


def listed_with_warning(capsys) -> list[dict]:
    assert vss2_list.main(["datasets", "--json"]) == 0
    output = capsys.readouterr()
    assert output.err.startswith("warning: project bad is left out: ImportError: no module")
    return json.loads(output.out)["datasets"]


def test_tables(capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    assert vss2_list.main(["datasets", "configs"]) == 0
    text = capsys.readouterr().out
    assert text.index("datasets (") < text.index("configs (")
    row = next(line for line in text.splitlines() if line.startswith("vspw_train"))
    assert row.split() == ["vspw_train", "124", "no", str(tmp_path / "VSPW_480p")]
    assert str(config_root()) not in text
    assert vss2_list.table("projects", []) == "projects: none\n"


def test_a_data_set_that_says_nothing_of_its_folder(capsys) -> None:
    name = "vss2_test_list_only"
    DatasetCatalog.register(name, list)
    try:
        row = next(r for r in listed(capsys, "datasets")["datasets"] if r["name"] == name)
        assert row == {"name": name, "classes": None, "present": None, "folder": None, "note": ""}
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(("word", "close"), [("config", "configs"), ("bacbones", "backbones")])
def test_unknown_topic(capsys, word: str, close: str) -> None:
    assert vss2_list.main([word]) == 2
    error = capsys.readouterr().err
    assert f"vss2 list knows no {word!r}. Did you mean {close!r}" in error
    assert len(error.splitlines()) == 1


def test_a_broken_config_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("x = (\n")
    assert vss2_list._first_doc_line(tmp_path / "bad.py") == "(syntax error in line 1)"
