"""`vss2 <project> <command>`: found by name or folder, imported when asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vss2 import plugins
from vss2.cli.main import main

PACKAGE = """
from vss2.plugins import ProjectInfo
PROJECT = ProjectInfo(
    name="Demo",
    commands={"say": "vss2_demo.tools:say", "near": ".tools:near", "wrong": "vss2_demo.tools:no"},
)
"""
TOOLS = '''
from vss2.errors import InputError
def say(argv):
    """Say the words.

    More about it.
    """
    print("said", *argv)
    return 7
def near(argv):
    """Fail politely."""
    raise InputError("not near")
'''


@pytest.fixture(params=["name", "folder"])
def demo(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """What the command line calls a project: its name, or the folder that it lies in."""
    folder = tmp_path / "vss2_demo"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "tools.py").write_text(TOOLS)
    path, modules = list(sys.path), set(sys.modules)
    if request.param == "name":
        monkeypatch.syspath_prepend(str(tmp_path))
        project = plugins.Project("demo", "vss2_demo", folder)
        monkeypatch.setattr(plugins, "find_projects", lambda: [project])
        yield "demo"
    else:
        yield str(folder)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_command_gets_its_arguments_and_gives_the_exit_code(demo: str, capsys) -> None:
    assert main([demo, "say", "a", "--b"]) == 7
    assert capsys.readouterr().out == "said a --b\n"


def test_a_users_mistake_in_a_command_is_one_line(demo: str, capsys) -> None:
    assert main([demo, "near"]) == 2
    assert capsys.readouterr().err == "error: not near\n"


def test_unknown_command_of_a_project(demo: str, capsys) -> None:
    assert main([demo, "sya"]) == 2
    error = capsys.readouterr().err
    assert f"project {demo!r} has no command 'sya'. Did you mean 'say'?" in error
    assert "Its commands: say, near, wrong" in error


def test_a_command_that_leads_nowhere(demo: str, capsys) -> None:
    assert main([demo, "wrong"]) == 2
    assert "PROJECT.commands['wrong'] of vss2_demo is 'vss2_demo.tools:no'" in (
        capsys.readouterr().err
    )


def test_help_of_a_project(demo: str, capsys) -> None:
    assert main([demo, "--help"]) == 0
    text = capsys.readouterr().out
    assert "  say    Say the words.\n" in text
    assert "  near   Fail politely." in text
    assert "  wrong  does not work: PROJECT.commands['wrong']" in text
    assert main([demo]) == 2


def test_nothing_of_a_project_is_imported_before_it_is_named(demo: str, capsys) -> None:
    assert main(["--help"]) == 0
    assert "projects: " in capsys.readouterr().out
    assert "vss2_demo" not in sys.modules


def test_unknown_word_names_commands_and_projects(monkeypatch, capsys) -> None:
    project = plugins.Project("themask", "vss2_no_such_package", None)
    monkeypatch.setattr(plugins, "find_projects", lambda: [project])
    assert main(["themsk", "x"]) == 2
    error = capsys.readouterr().err
    assert "unknown command 'themsk'. Did you mean 'themask'?" in error
    assert "convert, themask; see vss2 --help" in error
    assert main(["themask", "x"]) == 2
    assert "announced, but there is no vss2_no_such_package" in capsys.readouterr().err
