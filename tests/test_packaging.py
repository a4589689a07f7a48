"""The three ways to run vss2: from a wheel, from a checkout without install, editable."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "vss2",
    "configs",
    "projects",
    "tools",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
DEMO = {
    "__init__.py": "from vss2.plugins import ProjectInfo\n"
    "PROJECT = ProjectInfo(name='Demo', commands={'hello': 'vss2.projects.demo.sub.tool:hello'})\n",
    "sub/__init__.py": "",
    "sub/tool.py": "def hello(argv):\n    print('hello', *argv)\n",
    "sub/tests/__init__.py": "",
    "configs/demo_toy.py": '"""A demo."""\nfrom vss2.d2.config import LazyCall as L\n'
    "from .deep.base import model\nmodel.a = 2\n",
    "configs/deep/base.py": "model = dict(a=1)\n",
    "tests/test_demo.py": "",
    "README.md": "Demo\n",
}


def run(*command: str | Path, cwd: Path, fails: bool = False) -> str:
    """Output of a command in a clean environment; it must (not) succeed."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert (done.returncode != 0) == fails, done.stdout[-4000:]
    return done.stdout


def tracked(folder: Path) -> list[str]:
    """Files of `PARTS` as a clone has them: what git tracks or would add."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PARTS]
    if (folder / ".git").exists() and shutil.which("git"):
        names = subprocess.run(listing, cwd=folder, capture_output=True, text=True, check=True)
        return [name for name in names.stdout.splitlines() if (folder / name).is_file()]
    found = [folder / p for p in PARTS] + [f for p in PARTS for f in (folder / p).rglob("*")]
    files = [f for f in found if f.is_file() and "__pycache__" not in f.parts]
    return [f.relative_to(folder).as_posix() for f in files]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this checkout with one project more."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in tracked(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name, text in DEMO.items():
        file = folder / "projects" / "demo" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def environment(folder: Path) -> Path:
    """A fresh virtual environment that sees the installed packages but no vss2; its Python.

    The folder of packages is named in a .pth file; those in that folder, among them the one of an
    editable install, are not read then.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=ROOT)
    python = folder / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(run(python, "-c", query, cwd=folder).strip())
    (site / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy of its own: building leaves files in the folder.
    source = shutil.copytree(checkout, folder / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    (built,) = folder.glob("vss2-*.whl")
    return built


def test_wheel_holds_configs_and_projects_and_no_tests(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (points,) = [n for n in names if n.endswith("/entry_points.txt")]
        announced = archive.read(points).decode()
    for file in (checkout / "configs").rglob("*.py"):
        assert f"vss2/configs/{file.relative_to(checkout / 'configs').as_posix()}" in names
    for file in (checkout / "vss2").rglob("*.py"):
        assert file.relative_to(checkout).as_posix() in names
    for name in ("__init__.py", "sub/tool.py", "configs/demo_toy.py", "configs/deep/base.py"):
        assert f"vss2/projects/demo/{name}" in names
    assert not [n for n in names if "tests" in Path(n).parts or "test_" in Path(n).name]
    assert {n.split("/")[0] for n in names} == {"vss2", Path(points).parent.name}
    assert "demo = vss2.projects.demo" in announced
    assert "vss2 = vss2.cli.main:main" in announced


def test_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    absent = "import importlib.util as u; assert u.find_spec('vss2') is None"
    run(python, "-c", absent, cwd=tmp_path)
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    away = tmp_path / "away"
    away.mkdir()
    script = (
        "import vss2, vss2.projects.demo\n"
        "from vss2.config import config_root, get_config, load_config, resolve_config\n"
        f"assert vss2.__file__.startswith({str(tmp_path / 'env')!r}), vss2.__file__\n"
        "assert config_root().parent.name == 'vss2'\n"
        "assert resolve_config('segformer/segformer_toy').is_relative_to(config_root())\n"
        "assert load_config('segformer/segformer_toy').model.num_classes == 12\n"
        "assert load_config('demo/demo_toy') == {'model': {'a': 2}}\n"
        "model = vss2.load('segformer/segformer_toy', device='cpu')\n"
        "assert model.num_classes == 12\n"
    )
    run(python, "-c", script, cwd=away)
    program = python.with_name("vss2")
    listed = json.loads(run(program, "list", "configs", "projects", "--json", cwd=away))
    names = [row["name"] for row in listed["configs"]]
    assert {"segformer/segformer_toy", "demo/demo_toy"} <= set(names)
    assert len(names) == len(set(names))
    assert [p["package"] for p in listed["projects"]].count("vss2.projects.demo") == 1
    assert not any(p["error"] for p in listed["projects"])
    assert run(program, "demo", "hello", "you", cwd=away) == "hello you\n"


def test_checkout_without_install(checkout: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    assert "--config-file" in run(python, checkout / "tools/train_net.py", "--help", cwd=tmp_path)
    script = (
        "import vss2, vss2.projects.demo.sub.tool as tool\n"
        "from vss2.config import config_root, load_config\n"
        f"assert tool.__file__ == {str(checkout / 'projects/demo/sub/tool.py')!r}\n"
        f"assert str(config_root()) == {str(checkout / 'configs')!r}\n"
        "assert load_config('demo/demo_toy') == {'model': {'a': 2}}\n"
        "from vss2.cli.main import main\n"
        "assert main(['demo', 'hello']) == 0\n"
    )
    run(python, "-c", script, cwd=checkout)
    for tool in sorted((checkout / "tools").glob("*.py")):
        text = tool.read_text()
        assert "sys.path.insert(0, str(Path(__file__).resolve().parents[1]))" in text, tool
    wrong = run(python, checkout / "tools/train_net.py", "--config-file", "demo/demo_tow",
                cwd=tmp_path, fails=True)  # fmt: skip
    assert "Did you mean 'demo/demo_toy'" in wrong


def test_foreign_projects_folder_is_none_of_ours(checkout: Path, tmp_path: Path) -> None:
    """Beside an installed vss2 there is no pyproject.toml, but there may be a `projects`."""
    shutil.copytree(checkout / "vss2", tmp_path / "vss2")
    (tmp_path / "projects" / "foreign").mkdir(parents=True)
    (tmp_path / "projects" / "foreign" / "__init__.py").write_text("")
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "import vss2.projects\n"
        "assert [*vss2.projects.__path__] == [vss2.__path__[0] + '/projects']\n"
    )
    run(sys.executable, "-c", script, cwd=tmp_path)


def test_the_running_install(tmp_path: Path) -> None:
    program = Path(sysconfig.get_paths()["scripts"]) / "vss2"
    if importlib.util.find_spec("vss2") is None or not program.is_file():
        pytest.skip("vss2 is not installed in this environment")
    listed = json.loads(run(program, "list", "configs", "projects", "--json", cwd=tmp_path))
    files = {row["name"]: Path(row["file"]) for row in listed["configs"]}
    assert files["segformer/segformer_toy"].is_file()
    if files["segformer/segformer_toy"] == ROOT / "configs/segformer/segformer_toy.py":  # editable
        here = sorted(init.parent.name for init in (ROOT / "projects").glob("*/__init__.py"))
        assert [p["name"] for p in listed["projects"] if "vss2." in p["package"]] == here
