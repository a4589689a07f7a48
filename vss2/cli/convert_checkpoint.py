"""Turn a checkpoint of one layout into another and report what became of every key."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from tabulate import tabulate
from torch import nn

from vss2.checkpoint import load_weights, model_state, read_checkpoint
from vss2.checkpoint_io import atomic_write, few, plain
from vss2.cli import run_tool
from vss2.config import apply_overrides, load_config
from vss2.d2.config import instantiate
from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.errors import InputError, InputFileError

SUFFIXES = (".pth", ".pt", ".safetensors")
# In the order of the report: what a user must look at comes last, next to the prompt.
STATUSES = ("kept", "renamed", "computed", "ignored", "unexpected", "mismatched", "missing")

EPILOG = """
Without --config-file wrappers and prefixes are taken off and names stay. With it, names become
those of the config's model, and every tensor of the model must be there (--partial: not all).
--to published needs a model that can write its published layout.

examples, with the weights of `vss2 train --config-file segformer/segformer_toy
train.output_dir=output/toy`:
  vss2 convert --input output/toy/model_final.pth --output output/toy/weights.safetensors
  vss2 convert --config-file segformer/segformer_toy --to published --report output/toy/keys.json \\
      --input output/toy/weights.safetensors --output output/toy/published.pth
  vss2 convert --config-file segformer/segformer_toy \\
      --input output/toy/published.pth --output output/toy/back.pth
"""


class Key(NamedTuple):
    """What became of one key.

    Attributes:
        status: one of `STATUSES`.
        source: name in the input file, "" for a tensor that is not from there.
        target: name in the output file, "" for a tensor that does not go there.
        shape: of the tensor; None for an entry that is none.
        note: why.
    """

    status: str
    source: str
    target: str
    shape: tuple[int, ...] | None
    note: str = ""


def build_parser() -> argparse.ArgumentParser:
    """The tool's options."""
    parser = argparse.ArgumentParser(
        prog="vss2 convert",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config-file", metavar="CONFIG", help="path or short name; its model decides the names")
    add("--input", required=True, metavar="FILE", help="checkpoint of any layout that vss2 reads")
    add("--output", required=True, metavar="FILE", help=f"one of {', '.join(SUFFIXES)}")
    add("--to", choices=("vss2", "published"), default="vss2", help="layout to write (%(default)s)")
    add("--key", help="entry of the input that holds the weights; default: found by name")
    add("--partial", action="store_true", help="accept weights that fill only part of the model")
    add("--report", metavar="FILE.json", help="write what became of every key as JSON")
    add("--overwrite", action="store_true", help="replace existing files")
    add(
        "--trust",
        action="store_true",
        help="unpickle without restriction; that runs code in the file: only for trusted files",
    )
    add("overrides", nargs="*", metavar="key=value", help="config overrides")
    return parser


def file_names(content: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """For every entry of a checkpoint file its name among the weights, "" for what is none.

    Wrapper dicts around the weights are opened; any other entry counts as one, whatever it holds.

    Args:
        content: of the file.
        state: what `model_state` took out of it.
    """
    weights = {id(value): name for name, value in state.items()}
    names: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and weights.keys() & _ids(value):
            names |= file_names(value, state)
        else:
            names[str(name)] = weights.get(id(value), "")
    return names


def follow(
    state: Mapping[str, torch.Tensor],
    result: Mapping[str, torch.Tensor],
    names: Mapping[str, str] | None = None,
    reasons: Mapping[str, str] | None = None,
    own: Mapping[str, torch.Tensor] | None = None,
) -> list[Key]:
    """What became of every key when `state` was turned into `result`.

    Where a tensor comes from is seen by its memory, so each of `state` must have its own.

    Args:
        state: the weights by name before.
        result: the weights by name after.
        names: see `file_names`; default: the file has the names of `state`.
        reasons: why names of `state` were left out.
        own: tensors of the model that `result` is for; None = any names will do.
    """
    names = {name: name for name in state} if names is None else names
    in_file = {inner: outer for outer, inner in names.items() if inner}
    memory = {_memory(value): name for name, value in state.items()}
    keys, used = [], set()
    for name, value in result.items():
        source = memory.get(_memory(value), "")
        used.add(source)
        keys.append(_key(in_file.get(source, ""), name, value, own))
    for name, value in state.items():
        if name not in used:
            reason = (reasons or {}).get(name, "left out by the model")
            keys.append(Key("ignored", in_file.get(name, name), "", tuple(value.shape), reason))
    for name, inner in names.items():
        if not inner:
            keys.append(Key("ignored", name, "", None, "not among the weights"))
    for name, value in (own or {}).items():
        if name not in result:
            keys.append(Key("missing", "", name, tuple(value.shape)))
    return sorted(keys, key=lambda key: STATUSES.index(key.status))


def _key(
    source: str, target: str, value: torch.Tensor, own: Mapping[str, torch.Tensor] | None
) -> Key:
    shape = tuple(value.shape)
    if own is not None and target not in own:
        note = "" if source == target else f"as {target}"
        return Key("unexpected", source, "", shape, note)
    expected = shape if own is None else tuple(own[target].shape)
    if expected != shape and (expected, shape) != ((), (1,)):  # as old releases wrote scalars
        return Key("mismatched", source, target, shape, f"{expected} expected")
    if not source:
        return Key("computed", source, target, shape, "by the model, from several tensors")
    return Key("kept" if source == target else "renamed", source, target, shape)


def _memory(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr() if value.numel() else id(value)


def _ids(value: Mapping[Any, Any]) -> set[int]:
    found: set[int] = set()
    for item in value.values():
        found |= _ids(item) if isinstance(item, Mapping) else {id(item)}
    return found


def _as_tensors(value: Any) -> Any:
    """The same with tensors in the place of arrays."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(value)
    if isinstance(value, Mapping):
        return {key: _as_tensors(item) for key, item in value.items()}
    return value


def _convert(
    model: nn.Module, state: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The weights under the model's names, and the reasons for what was left out on purpose."""
    convert = getattr(model, "convert_checkpoint", None)
    result = state if convert is None else convert(state)
    if not isinstance(result, tuple):
        return dict(result), {}
    reasons = result[1]
    if not isinstance(reasons, Mapping):
        reasons = dict.fromkeys(reasons, "left out by the model")
    return dict(result[0]), dict(reasons)


def to_published(model: nn.Module) -> tuple[dict[str, Any], list[Key]]:
    """The model's weights in the published layout, proved by converting them back.

    The model's method `published_checkpoint(state)` returns the content of such a file.

    Returns:
        The content, and what became of every key.

    Raises:
        InputError: the model has no such method, or its result does not convert back to the same
            weights.
    """
    kind = type(model).__name__
    write: Any = getattr(model, "published_checkpoint", None)
    if write is None:
        raise InputError(f"{kind} cannot write a published layout: no method published_checkpoint")
    own = {name: value.clone() for name, value in model.state_dict().items()}
    content = write(own)
    state = model_state(content)
    back, _ = _convert(model, state)
    wrong = [n for n in own if n not in back or not torch.equal(own[n], back[n])]
    wrong += [n for n in back if n not in own]
    if wrong:
        raise InputError(
            f"the published layout that {kind} writes does not convert back to the same weights: "
            f"{few(wrong)}"
        )
    return content, follow(own, state)


def convert(args: argparse.Namespace) -> int:
    """Run the tool with parsed options; returns the exit status."""
    _check_files(args)
    if args.config_file is None and (args.to == "published" or args.overrides or args.partial):
        raise InputError("--to published, --partial and overrides need --config-file")
    content = _as_tensors(read_checkpoint(args.input, args.trust))
    found = model_state(content, args.key, f"checkpoint {args.input}")
    names = file_names(content, found)
    state = {name: value.clone() for name, value in found.items()}
    if args.config_file is None:
        _report(args, follow(state, state, names))
        return _write(args, {"model": state})
    cfg = apply_overrides(load_config(args.config_file), args.overrides)
    model = instantiate(cfg.model)
    result, reasons = _convert(model, state)
    keys = follow(state, result, names, reasons, model.state_dict())
    try:
        report = load_weights(model, args.input, key=args.key, trust=args.trust)
        if report.missing and not (args.partial and args.to == "vss2"):
            hint = ". --partial accepts that" if args.to == "vss2" else ""
            kind = type(model).__name__
            raise InputError(
                f"checkpoint {args.input} does not fill {kind}: {report.summary()}{hint}"
            )
    except InputError:
        _report(args, keys)
        raise
    own = model.state_dict()
    output: dict[str, Any] = {"model": {name: own[name] for name in report.loaded}}
    if args.to == "published":
        output, keys = to_published(model)
        if isinstance(output.get("meta"), dict):
            output["meta"] |= _class_names(cfg)
    _report(args, keys)
    return _write(args, output)


def _check_files(args: argparse.Namespace) -> None:
    if Path(args.output).suffix not in SUFFIXES:
        raise InputError(f"--output {args.output} must end in one of {', '.join(SUFFIXES)}")
    for option in ("output", "report"):
        name = getattr(args, option)
        if name is None:
            continue
        if Path(name).exists() and not args.overwrite:
            raise InputError(f"--{option} {name} exists; --overwrite replaces it")
        if not Path(name).parent.is_dir():
            raise InputFileError(f"--{option} {name}: the folder {Path(name).parent} is missing")


def _report(args: argparse.Namespace, keys: Sequence[Key]) -> None:
    counts = Counter(key.status for key in keys)
    summary = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    cells = [
        [k.status, k.source, k.target, "x".join(map(str, k.shape or ())), k.note] for k in keys
    ]
    print(tabulate(cells, headers=("status", "from", "to", "shape", "note"), disable_numparse=True))
    print(f"{len(keys)} keys: {summary}")
    if args.report is None:
        return
    content = {
        "input": str(args.input),
        "output": str(args.output),
        "config": args.config_file,
        "to": args.to,
        "counts": {status: counts[status] for status in STATUSES},
        "keys": [key._asdict() for key in keys],
    }
    with atomic_write(Path(args.report)) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def _write(args: argparse.Namespace, content: dict[str, Any]) -> int:
    output = Path(args.output)
    with atomic_write(output) as temporary:
        if output.suffix == ".safetensors":
            state = {name: value.contiguous() for name, value in model_state(content).items()}
            save_file(state, temporary, metadata={"format": "pt"})
        else:
            torch.save(plain(content, "checkpoint"), temporary)
    print(f"written: {output}")
    return 0


def _class_names(cfg: Any) -> dict[str, Any]:
    """What published files of mmsegmentation say about classes, from the config's test set."""
    name = OmegaConf.select(cfg, "dataloader.evaluator.dataset_name")
    if not isinstance(name, str) or name not in DatasetCatalog.list():
        return {}
    metadata = MetadataCatalog.get(name)
    named = {"CLASSES": metadata.get("stuff_classes"), "PALETTE": metadata.get("stuff_colors")}
    return {key: [*value] for key, value in named.items() if value}


def _run(argv: Sequence[str] | None) -> int:
    return convert(build_parser().parse_intermixed_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run with `argv` (default: the command line); 2 after a user's mistake."""
    return run_tool(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
