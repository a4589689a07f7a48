"""`vss2 bench`, `tools/benchmark.py`: speed and memory of a model's streaming session."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

import vss2
from vss2.cli import run_tool
from vss2.d2 import backend_info
from vss2.d2.config import instantiate
from vss2.data.image_io import write_bytes
from vss2.data.video_io import FrameSource, open_source
from vss2.errors import InputError
from vss2.inference import benchmark
from vss2.modeling.compile import compile_targets

GENERATED = 12  # frames of the generated video, shown again and again

EPILOG = """\
Each frame is read, resized, given to the session, and its labels are written, one after the other.
Latency is the session's: from a frame in memory to its labels in memory. Without --weights the
model is as initialised, which costs the same time. Mask propagation follows one endless video:
its memory grows with it, unless model.session bounds it.

examples:
  vss2 bench --config-file segformer/segformer_mit_b1_vspw --size 480 853 --threads 1
  vss2 bench --config-file segformer/segformer_toy --size 128 128 --compare "" "--compile"
  vss2 bench --size 480 853 --json out.json \\
      --compare segformer/segformer_mit_b0_vspw segformer/segformer_mit_b1_vspw

--compare takes two sets of options: each may name a config and hold --weights, --threads,
--device, --compile, --compile-mode, --scores and key=value. What it leaves out is as given outside.
"""


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that may differ between what is compared."""
    add = parser.add_argument
    add("--weights", help="checkpoint; default: as initialised")
    add("--threads", type=int, help="CPU threads of PyTorch and OpenCV; default: PyTorch's")
    add("--device", help="cuda, cpu, …; default: the config's train.device")
    add("--compile", action="store_true", help="torch.compile what the model names for it")
    add("--compile-mode", help="mode of torch.compile, such as reduce-overhead")
    add("--scores", action="store_true", help="ask the session for scores instead of labels")


def build_parser() -> argparse.ArgumentParser:
    """The tool's options."""
    parser = argparse.ArgumentParser(
        prog="vss2 bench",
        description="Latency, frames a second, stage shares and memory of a streaming session.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config-file", help="config: a path or a short name like segformer/…")
    _add_model_options(parser)
    add("--input", help="folder of images, image or video file")
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="generate frames of this size instead of --input",
    )
    add("--frames", type=int, default=50, help="measured frames (default %(default)s)")
    add("--warmup", type=int, default=5, help="frames before that (default %(default)s)")
    add(
        "--objects",
        type=int,
        default=1,
        metavar="N",
        help="objects that mask propagation follows, from a made-up first mask (default 1)",
    )
    add("--compare", nargs=2, metavar=("A", "B"), help="two sets of options, measured in turns")
    add("--json", metavar="FILE", help="write everything there; - for standard output")
    add("overrides", nargs="*", metavar="key=value", help="config overrides")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options; `--compare` takes texts that look like options themselves."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--compare" in arguments:
        # argparse takes a text with a space in it for a value, whatever it begins with.
        first = arguments.index("--compare") + 1
        arguments[first : first + 2] = [" " + text for text in arguments[first : first + 2]]
    return build_parser().parse_intermixed_args(arguments)


def variants(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each contestant, with its name.

    Raises:
        InputError: an option of --compare is unknown, or a contestant has no config.
    """
    texts = [""] if args.compare is None else [text.strip() for text in args.compare]
    chosen = []
    for letter, text in zip("AB", texts, strict=False):
        parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
        _add_model_options(parser)
        parser.add_argument("words", nargs="*")
        base = {key: getattr(args, key) for key in vars(parser.parse_args([])) if key != "words"}
        parser.set_defaults(**base)
        try:
            options, unknown = parser.parse_known_intermixed_args(shlex.split(text))
        except (argparse.ArgumentError, ValueError) as error:
            raise InputError(f"--compare {letter}, {text!r}: {error}") from error
        configs = [word for word in options.words if "=" not in word]
        if unknown or len(configs) > 1:
            wrong = " ".join(unknown or configs[1:])
            raise InputError(f"--compare {letter}, {text!r}: {wrong!r} is not understood")
        options.config_file = configs[0] if configs else args.config_file
        if options.config_file is None:
            raise InputError("Say what to measure: --config-file, or a config in --compare.")
        options.overrides = [*args.overrides, *(w for w in options.words if "=" in w)]
        options.name = "model" if args.compare is None else f"{letter}: {text or 'as given'}"
        chosen.append(options)
    return chosen


def check_options(args: argparse.Namespace) -> None:
    """Raise InputError for values that cannot be measured with."""
    if (args.input is None) == (args.size is None):
        raise InputError("Give either --input or --size HEIGHT WIDTH.")
    if args.size is not None and min(args.size) < 1:
        raise InputError(f"--size must be positive, got {args.size[0]} {args.size[1]}.")
    if args.frames < 1 or args.warmup < 1:
        raise InputError(
            f"--frames and --warmup must be at least 1, got {args.frames} and {args.warmup}."
        )
    if args.objects < 1:
        raise InputError(f"--objects must be at least 1, got {args.objects}.")


def build(
    options: argparse.Namespace, source: Any, scratch: Path, objects: int = 1
) -> benchmark.Contestant:
    """Load the model of `options` and make it ready."""
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads must be at least 1, got {options.threads}.")
    torch.manual_seed(0)
    model: Any = vss2.load(
        options.config_file,
        weights=options.weights,
        overrides=options.overrides,
        device=options.device,
    )
    compiled = []
    if options.compile or options.compile_mode:
        compiled = compile_targets(model, options.compile_mode)
    node = model.cfg.get("dataloader", {}).get("test", {}).get("mapper", {}).get("resize")
    contestant = benchmark.Contestant(
        options.name,
        model,
        source,
        scratch,
        resize=None if node is None else instantiate(node),
        labels_only=not options.scores,
        threads=options.threads,
        objects=objects,
    )
    options.described = {
        "name": options.name,
        "config": options.config_file,
        "weights": options.weights or "as initialised",
        "overrides": list(options.overrides),
        "device": str(contestant.device),
        "threads": contestant.threads,
        "compiled": compiled,
        "compile_mode": options.compile_mode if compiled else None,
        "output": "scores" if options.scores else "labels",
        "lag": contestant.lag,
        "objects": contestant.objects,
    }
    return contestant


def _open(args: argparse.Namespace, folder: Path) -> tuple[FrameSource, dict[str, Any]]:
    """The frames and what the report says of them."""
    if args.size is not None:
        frames = folder / "frames"
        frames.mkdir()
        benchmark.generate_frames(frames, GENERATED, *args.size)
        source, kind = open_source(frames), "generated JPEG frames"
    else:
        source, kind = open_source(args.input), str(args.input)
        if getattr(source, "live", False):
            raise InputError(f"{args.input} gives its frames once only: measure on stored frames.")
    height, width = next(iter(source))[1].shape[:2]
    return source, {"source": kind, "height": height, "width": width}


def environment() -> dict[str, Any]:
    """Hardware and versions."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    backend = backend_info()
    return {
        "cpu": cpu,
        "cores": len(_affinity()),
        "gpus": gpus,
        "python": platform.python_version(),
        "vss2": vss2.__version__,
        "backend": f"{backend['name']} {backend['version']}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpus else None,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "system": platform.platform(),
    }


def _affinity() -> Sequence[int]:
    """The CPU cores that this process may use."""
    import os

    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the tool with parsed options; returns the report.

    Raises:
        InputError: bad options, an unreadable input, a model that cannot be measured.
    """
    check_options(args)
    chosen = variants(args)
    with tempfile.TemporaryDirectory(prefix="vss2_bench_") as folder:
        source, about = _open(args, Path(folder))
        contestants = [build(options, source, Path(folder), args.objects) for options in chosen]
        memory = benchmark.PeakMemory(contestants[0].device)

        def progress(rounds: range) -> Any:
            return tqdm(rounds, unit="round", desc="bench", leave=False)

        times = benchmark.run(contestants, args.frames, args.warmup, progress)
        report: dict[str, Any] = {
            "environment": environment(),
            "input": about,
            "warmup": args.warmup,
            "runs": [
                {**options.described, **benchmark.summary(taken)}
                for options, taken in zip(chosen, times, strict=True)
            ],
            "memory": memory.read(),
        }
    if args.compare is not None:
        a, b = times
        report["compare"] = {
            "session": benchmark.ratio([t.session for t in b], [t.session for t in a]),
            "with_reading": benchmark.ratio(
                [t.with_reading for t in b], [t.with_reading for t in a]
            ),
        }
    return report


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    env, about = report["environment"], report["input"]
    lines = [
        (
            f"{env['cpu']}, {env['cores']} cores, GPU: {', '.join(env['gpus']) or 'none'}; "
            f"vss2 {env['vss2']}, torch {env['torch']}, OpenCV {env['opencv']}"
        ),
        f"input: {about['source']}, {about['height']}x{about['width']}",
    ]
    for run in report["runs"]:
        latency, rate = run["latency_ms"], run["frames_per_second"]
        reading = run["latency_with_reading_ms"]
        compiled = f", compiled: {', '.join(run['compiled'])}" if run["compiled"] else ""
        followed = f", {run['objects']} objects" if run["objects"] else ""
        share = ", ".join(
            f"{stage} {100 * part:.1f}%" for stage, part in run["stage_share"].items()
        )
        lines += [
            "",
            (
                f"{run['name']}  ({run['config']}, weights: {run['weights']}, {run['device']}, "
                f"{run['threads']} threads, {run['output']}{compiled}{followed})"
            ),
            (
                f"  session         p50 {latency['p50']:.1f} ms  p99 {latency['p99']:.1f} ms  "
                f"{rate['session']:.2f} frames/s  ({run['frames']} frames)"
            ),
            (
                f"  with reading    p50 {reading['p50']:.1f} ms  p99 {reading['p99']:.1f} ms  "
                f"{rate['with_reading']:.2f} frames/s; with writing too "
                f"{rate['with_reading_and_writing']:.2f}"
            ),
            f"  share           {share}",
        ]
    memory = report["memory"]
    lines += ["", _memory_line(memory)]
    for name, ratio in report.get("compare", {}).items():
        lines.append(
            f"B / A, {name.replace('_', ' ')}: {ratio['median']:.3f} of the time "
            f"(p10 {ratio['p10']:.3f}, p90 {ratio['p90']:.3f} over {ratio['rounds']} rounds)"
        )
    return "\n".join(lines)


def _memory_line(memory: dict[str, Any]) -> str:
    def megabytes(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.0f} MB"

    line = (
        f"memory: resident {megabytes(memory['rss_start_mb'])} before, peak "
        f"{megabytes(memory['rss_peak_mb'])} since the {memory['rss_peak_since']}"
    )
    if "cuda_allocated_peak_mb" in memory:
        line += f"; CUDA peak {megabytes(memory['cuda_allocated_peak_mb'])} allocated"
    return line


def _run(argv: Sequence[str] | None) -> int:
    args = parse(argv)
    report = measure(args)
    if args.json == "-":
        print(json.dumps(report, indent=2))
        return 0
    print(text(report))
    if args.json is not None:
        write_bytes(args.json, (json.dumps(report, indent=2) + "\n").encode())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run with `argv` (default: the command line); 2 after a user's mistake."""
    return run_tool(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
