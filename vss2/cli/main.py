"""The console script `vss2 <command> ...` and `vss2 <project> <command> ...`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vss2 import __version__
from vss2.errors import InputError, did_you_mean

from . import run_tool

# command -> (module with a `main(argv)`, what it does)
COMMANDS = {
    "train": ("vss2.cli.train_net", "train or evaluate the model of a config"),
    "predict": ("vss2.cli.predict", "segment a folder of frames or a video file"),
    "bench": ("vss2.cli.benchmark", "measure speed and memory of a model"),
    "data": ("vss2.cli.prepare_data", "make or check data sets"),
    "list": ("vss2.cli.list", "list configs, projects, data sets and backbones"),
    "convert": ("vss2.cli.convert_checkpoint", "turn checkpoints of one layout into another"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to the command that `argv` (default: the process's arguments) names."""
    return run_tool(_dispatch, argv)


def _dispatch(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        print(f"vss2 {__version__}")
        return 0
    if command in COMMANDS:
        return importlib.import_module(COMMANDS[command][0]).main(rest)
    return _project_command(command, rest)


def _project_command(name: str, arguments: Sequence[str]) -> int:
    """`vss2 <project> <command> ...`; the project is a name or the folder of a package."""
    package, commands = _project(name)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_project_usage(name, package, commands))
        return 0 if arguments else 2
    command, rest = arguments[0], list(arguments[1:])
    if command not in commands:
        raise InputError(
            f"project {name!r} has no command {command!r}.{did_you_mean(command, commands)} "
            f"Its commands: {', '.join(commands) or 'none'}"
        )
    return _function(package, command, commands[command])(rest) or 0


def _project(name: str) -> tuple[str, dict[str, str]]:
    """Package and commands of the project that is called or lies at `name`."""
    from vss2 import plugins

    project = plugins.project_named(name)
    if project is None and (Path(name) / "__init__.py").is_file():
        package, _ = plugins.make_importable(Path(name))
        project = plugins.Project(name, package, Path(name))
    if project is None:
        known = [*COMMANDS, *(project.name for project in plugins.find_projects())]
        raise InputError(
            f"unknown command {name!r}.{did_you_mean(name, known)} "
            f"Commands and projects: {', '.join(known)}; see vss2 --help"
        )
    if project.folder is None:
        raise InputError(f"project {name!r} is announced, but there is no {project.package}")
    return project.package, dict(plugins.project_info(project).commands)


def _function(package: str, command: str, target: str) -> Callable[[list[str]], int | None]:
    module, _, attribute = target.partition(":")
    function = getattr(importlib.import_module(module, package), attribute, None)
    if not callable(function):
        raise InputError(
            f"PROJECT.commands[{command!r}] of {package} is {target!r}, expected 'module:function'"
        )
    return function


def _rows(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in rows.items()]


def _usage() -> str:
    from vss2.plugins import find_projects

    projects = ", ".join(project.name for project in find_projects()) or "none"
    return "\n".join(
        [
            "usage: vss2 <command> [options]",
            "       vss2 <project> <command> [options]",
            "",
            "commands:",
            *_rows({name: text for name, (_, text) in COMMANDS.items()}),
            "",
            f"projects: {projects}",
            "",
            "vss2 <command> --help and vss2 <project> --help say more.",
            "vss2 --version prints the version.",
        ]
    )


def _project_usage(name: str, package: str, commands: dict[str, str]) -> str:
    if not commands:
        return f"project {name} has no commands"
    about = {}
    for command, target in commands.items():
        try:
            doc = inspect.getdoc(_function(package, command, target)) or target
        except (ImportError, InputError) as e:  # a broken command must not hide the others
            doc = f"does not work: {e}"
        about[command] = doc.splitlines()[0]
    return "\n".join([f"usage: vss2 {name} <command> [options]", "", "commands:", *_rows(about)])
