"""Projects: found by folder, entry point and path."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml

from vss2 import plugins
from vss2.config import load_config, resolve_config, save_config
from vss2.d2.config import instantiate
from vss2.errors import InputError, InputFileError

ROOT = Path(__file__).resolve().parents[2]
CODE = "class Model:\n    def __init__(self, value):\n        self.value = value\n"
CONFIG = (
    "from vss2.d2.config import LazyCall as L\nfrom {package} import Model\n"
    "model = L(Model)(value=3)\n"
)

MakePackage = Callable[..., Path]


@pytest.fixture
def make_package(tmp_path: Path) -> Iterator[MakePackage]:
    """`make(name, root=tmp_path) -> its config`; modules and import path are restored."""
    path, modules = list(sys.path), set(sys.modules)

    def make(name: str, root: Path = tmp_path) -> Path:
        folder = root / name.replace(".", "/")
        (folder / "configs").mkdir(parents=True)
        for parent in (folder, *folder.parents):
            if parent == root:
                break
            (parent / "__init__.py").write_text(CODE)
        (folder / "configs" / "one.py").write_text(CONFIG.format(package=name))
        return folder / "configs" / "one.py"

    yield make
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def announce(site: Path, distribution: str, **projects: str) -> None:
    """The metadata of an installed distribution that announces projects."""
    info = site / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {package}" for name, package in projects.items()]
    (info / "entry_points.txt").write_text("\n".join(["[vss2.projects]", *lines, ""]))


def test_the_saved_config_of_a_folder_loads_anywhere(
    make_package: MakePackage, tmp_path: Path
) -> None:
    cfg = load_config(make_package("vss2_plug_a"))
    assert cfg.import_path == [str(tmp_path)]
    saved = tmp_path / "elsewhere" / "config.yaml"
    saved.parent.mkdir()
    save_config(cfg, saved)
    script = (
        "import sys\nfrom vss2.config import load_config\nfrom vss2.d2.config import instantiate\n"
        f"cfg = load_config({str(saved)!r})\n"
        "assert instantiate(cfg.model).value == 3\n"
        f"assert cfg.import_path == [{str(tmp_path)!r}]\n"
        f"assert sys.path[0] == {str(tmp_path)!r}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=saved.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def _value(config: str) -> tuple[int, list[str]]:
    cfg = load_config(config)
    return instantiate(cfg.model).value, list(cfg.import_path)


def test_spawned_processes_find_and_remember_the_code(
    make_package: MakePackage, tmp_path: Path
) -> None:
    config = make_package("vss2_plug_b")
    load_config(config)  # as the process does that starts the others, which inherit its path
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(_value, (str(config),)) == (3, [str(tmp_path)])


def test_a_folder_that_is_gone_is_named(make_package: MakePackage, tmp_path: Path) -> None:
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.dump({"import_path": [str(tmp_path / "gone")], "model": {}}))
    with pytest.raises(InputFileError, match=r"config\.yaml: the folder .*gone in its import_path"):
        load_config(saved)


def test_a_loaded_twice_path_grows_once(make_package: MakePackage, tmp_path: Path) -> None:
    config = make_package("vss2_plug_c")
    load_config(config)
    saved = tmp_path / "config.yaml"
    save_config(load_config(config), saved)
    load_config(saved)
    assert sys.path.count(str(tmp_path)) == 1


def test_a_package_in_a_package_is_found_from_the_top(
    make_package: MakePackage, tmp_path: Path
) -> None:
    cfg = load_config(make_package("vss2_plug_d.method"))
    assert cfg.import_path == [str(tmp_path)]
    assert instantiate(cfg.model).value == 3


def test_what_is_installed_is_not_remembered(
    make_package: MakePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_package("vss2_plug_e")
    monkeypatch.setattr(plugins, "_install_folders", lambda: {tmp_path})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "import_path" not in load_config(config)


def test_two_folders_of_one_name(make_package: MakePackage, tmp_path: Path) -> None:
    load_config(make_package("vss2_plug_f", tmp_path / "a"))
    other = make_package("vss2_plug_f", tmp_path / "b")
    with pytest.raises(InputError, match=r"'vss2_plug_f' is already imported from .*a/vss2_plug_f"):
        load_config(other)


def test_the_folder_of_the_config_wins_over_one_that_nobody_has_imported(
    make_package: MakePackage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_package("vss2_plug_g", tmp_path / "a")
    sys.path.insert(0, str(tmp_path / "a"))
    with caplog.at_level(logging.INFO, logger="vss2.plugins"):
        load_config(make_package("vss2_plug_g", tmp_path / "b"))
    assert sys.modules["vss2_plug_g"].__file__ == str(tmp_path / "b/vss2_plug_g/__init__.py")
    assert f"putting {tmp_path / 'b'} first on the import path" in caplog.text


def test_a_config_that_imports_what_is_not_there(tmp_path: Path) -> None:
    config = tmp_path / "lonely.py"
    config.write_text("from vss2_no_such_package.sub import Model\n")
    with pytest.raises(InputError, match="imports 'vss2_no_such_package', which is neither"):
        load_config(config)


def test_a_defect_of_the_package_keeps_its_traceback(make_package: MakePackage) -> None:
    config = make_package("vss2_plug_h")
    (config.parents[1] / "__init__.py").write_text("import vss2_no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="vss2_no_such_dependency"):
        load_config(config)


def test_announced_projects(
    make_package: MakePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_package("vss2_plug_i")
    announce(tmp_path, "vss2_plug_i", plugi="vss2_plug_i", lost="vss2_no_such_package")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {project.name: project for project in plugins.find_projects()}
    assert found["plugi"] == ("plugi", "vss2_plug_i", config.parents[1])
    assert found["lost"].folder is None
    assert "vss2_plug_i" not in sys.modules
    assert plugins.project_info(found["plugi"]) == plugins.ProjectInfo(name="plugi")
    assert resolve_config("plugi/one") == config
    assert "import_path" not in load_config("plugi/one")
    assert plugins.project_named("no_such_project") is None


def test_two_packages_with_one_project_name(
    make_package: MakePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vss2_plug_j", "vss2_plug_k"):
        make_package(name)
        announce(tmp_path, name, plugj=name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="several packages: vss2_plug_j, vss2_plug_k"):
        plugins.project_named("plugj")
    with pytest.raises(InputError, match="ambiguous"):
        resolve_config("plugj/one")


def test_project_of_another_type_is_refused(make_package: MakePackage, tmp_path: Path) -> None:
    config = make_package("vss2_plug_l")
    (config.parents[1] / "__init__.py").write_text("PROJECT = {'name': 'x'}\n")
    name, root = plugins.make_importable(config.parents[1])
    assert (name, root) == ("vss2_plug_l", tmp_path)
    with pytest.raises(InputError, match="PROJECT in vss2_plug_l is a dict, expected"):
        plugins.project_info(plugins.Project("x", name, root))


def test_projects_of_this_checkout() -> None:
    folders = sorted(path.parent for path in (ROOT / "projects").glob("*/__init__.py"))
    own = [p for p in plugins.find_projects() if p.package.startswith("vss2.projects.")]
    assert [project.folder for project in own] == folders
    assert [project.name for project in own] == [folder.name for folder in folders]
