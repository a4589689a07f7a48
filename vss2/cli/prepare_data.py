"""`vss2 data`, `tools/prepare_data.py`: make data sets that vss2 can make itself, check others."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vss2.cli import run_tool
from vss2.data.datasets import datasets_root, toy, youtube_vos
from vss2.data.datasets.vspw import load_vspw
from vss2.data.datasets.ytvos_index import build_ytvos_index, write_ytvos_index
from vss2.data.doctor import Report, check_dataset, check_folder
from vss2.data.image_io import read_image, read_label, write_bytes, write_image
from vss2.data.labels import reduce_labels
from vss2.data.resize_videos import resize_videos
from vss2.errors import InputError
from vss2.visualization import contact_sheet, legend, overlay

_PREVIEW_CELL = 192  # width of a frame on the preview, pixels


def build_parser() -> argparse.ArgumentParser:
    """The tool's commands and options."""
    parser = argparse.ArgumentParser(
        prog="vss2 data",
        description="Make or check data sets.",
        epilog="examples:\n  vss2 data toy\n  vss2 data check --dataset toy_train\n"
        "  vss2 data resize-youtube",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    default = toy.ToyWorld()
    command = commands.add_parser(
        "toy",
        help="small synthetic videos with exact labels, in VSPW's layout",
        description="Make the toy world: small synthetic videos with exact labels, in VSPW's "
        "layout. The data sets toy_train and toy_val make the default one by themselves.",
        epilog="examples:\n"
        "  vss2 data toy --preview output/toy.png\n"
        "  vss2 data toy --output output/small --num-train 8 --num-val 2 --size 64 96 --seed 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--output", type=Path, help="folder of the set; default: <VSS2_DATASETS>/toy_world-<hash>"
    )
    command.add_argument(
        "--num-train", type=int, default=default.num_train, help="training videos (%(default)s)"
    )
    command.add_argument(
        "--num-val", type=int, default=default.num_val, help="validation videos (%(default)s)"
    )
    command.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=default.size,
        metavar=("HEIGHT", "WIDTH"),
        help=f"of the frames ({default.size[0]} {default.size[1]})",
    )
    command.add_argument("--seed", type=int, default=default.seed, help="(%(default)s)")
    command.add_argument(
        "--preview", type=Path, metavar="FILE.png", help="draw frames of some videos to this file"
    )
    command.set_defaults(run=make_toy)
    _add_check(commands)
    _add_resize_youtube(commands)
    _add_ytvos_index(commands)
    return parser


def _add_check(commands: Any) -> None:
    command = commands.add_parser(
        "check",
        help="find damaged files, wrong labels, sizes, lists and duplicates",
        description="Look into every file of a data set and its lists. Exit code 0: nothing wrong "
        "(warnings at most), 1: errors were found, 2: the check could not be made.",
        epilog="examples:\n"
        "  vss2 data check --dataset toy_train\n"
        "  vss2 data check --root /data/VSPW_480p --split train --json report.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", metavar="NAME", help="a registered data set, as vspw_train")
    what.add_argument("--root", type=Path, metavar="DIR", help="a folder in VSPW's layout")
    command.add_argument("--split", metavar="NAME", help="with --root: one list only (all)")
    command.add_argument(
        "--num-classes",
        type=int,
        metavar="K",
        help="with --root (default: by label_num_dic_final.json, else 124)",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="also write all findings here")
    command.add_argument(
        "--num-workers", type=int, metavar="N", help="processes (default: one per CPU)"
    )
    command.add_argument(
        "--show", type=int, default=5, metavar="N", help="findings shown of each kind (%(default)s)"
    )
    command.set_defaults(run=check)


def _add_resize_youtube(commands: Any) -> None:
    command = commands.add_parser(
        "resize-youtube",
        help="make YouTube-VOS's training set at 480p",
        description="Resize the frames and masks of <root>/train to a shorter side of 480 pixels, "
        "into <root>/train_480p. A call that was cut off can be repeated.",
    )
    command.add_argument(
        "--root", type=Path, metavar="DIR", help="holds train/ (default: <VSS2_DATASETS>/YouTube)"
    )
    command.add_argument(
        "--num-workers", type=int, metavar="N", help="processes (default: one per CPU, at most 8)"
    )
    command.set_defaults(run=resize_youtube)


def _add_ytvos_index(commands: Any) -> None:
    command = commands.add_parser(
        "ytvos-index",
        help="make the frame list of YouTube-VOS at full rate",
        description="List the frames of <root>/train_all_frames/JPEGImages in <root>/ytvos.csv: "
        "video, number of the first frame, number of frames. SFC trains by this list.",
    )
    command.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="holds train_all_frames/ (default: <VSS2_DATASETS>/YouTube2018)",
    )
    command.set_defaults(run=ytvos_index)


def resize_youtube(args: argparse.Namespace) -> int:
    """`vss2 data resize-youtube`."""
    root = args.root or datasets_root() / youtube_vos.FOLDERS[2019]
    target = root / "train_480p"
    with tqdm(unit="file", desc="resize", leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        written = resize_videos(root / "train", target, 480, args.num_workers, show)
    print(f"{written} frames and masks were resized; the set is in {target}")
    return 0


def ytvos_index(args: argparse.Namespace) -> int:
    """`vss2 data ytvos-index`."""
    root = args.root or datasets_root() / youtube_vos.FOLDERS[2018]
    with tqdm(unit="video", desc="index", leave=False) as bar:
        rows = build_ytvos_index(root / "train_all_frames/JPEGImages", bar.update)
    write_ytvos_index(root / youtube_vos.INDEX, rows)
    frames = sum(row.num_frames for row in rows)
    print(f"{len(rows)} videos, {frames} frames: {root / youtube_vos.INDEX}")
    return 0


def check(args: argparse.Namespace) -> int:
    """`vss2 data check`; 1 if there are errors."""
    if args.dataset and (args.split or args.num_classes):
        raise InputError("--split and --num-classes belong to --root; a data set has its own.")
    with tqdm(unit="frame", desc="check", leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = _check(args, show)
    print(report.table(per_kind=max(args.show, 0)))
    if args.json is not None:
        text = json.dumps(report.as_dict(), indent=1, ensure_ascii=False)
        write_bytes(args.json, f"{text}\n".encode())
        print(f"\nAll findings in {args.json}")
    return 1 if report.errors else 0


def _check(args: argparse.Namespace, progress: Callable[[int, int], object]) -> Report:
    if args.dataset:
        return check_dataset(args.dataset, args.num_workers, progress)
    if args.num_classes is not None and not 1 <= args.num_classes <= 254:
        raise InputError(f"--num-classes lies between 1 and 254, got {args.num_classes}.")
    return check_folder(args.root, args.split, args.num_classes, args.num_workers, progress)


def make_toy(args: argparse.Namespace) -> int:
    """`vss2 data toy`."""
    world = toy.ToyWorld(
        num_train=args.num_train, num_val=args.num_val, size=tuple(args.size), seed=args.seed
    )
    with tqdm(total=world.num_train + world.num_val, unit="video", desc="toy", leave=False) as bar:
        folder = toy.make_toy_world(world, args.output, progress=bar.update)
    print(f"Toy world in {folder}")
    for split in toy.SPLITS:
        videos = load_vspw(folder, split)
        frames = sum(len(video["frames"]) for video in videos)
        damaged = sum(map(len, toy.damaged_frames(split, folder).values()))
        print(f"  {split}: {len(videos)} videos, {frames} frames, {damaged} of them damaged")
    print(f"  {len(toy.STUFF_CLASSES)} classes: {', '.join(toy.STUFF_CLASSES)}")
    if args.preview is not None:
        write_image(args.preview, preview(folder))
        print(f"Preview in {args.preview}")
    return 0


def preview(folder: Path, num_videos: int = 4, num_frames: int = 5) -> np.ndarray:
    """Contact sheet of the validation videos: frames, below them their labels, and a legend.

    Each video shows a damaged frame, if it has one, among evenly spaced others.
    """
    damaged = toy.damaged_frames("val", folder)
    rows, titles = [], []
    for video in load_vspw(folder, "val")[:num_videos]:
        frames = video["frames"]
        chosen = _choose(len(frames), num_frames, damaged[video["video_id"]])
        images = [read_image(frames[t]["file_name"]) for t in chosen]
        labels = [reduce_labels(read_label(frames[t]["label_file"])) for t in chosen]
        pairs = zip(images, labels, strict=True)
        rows += [
            images,
            [overlay(image, ids, toy.STUFF_COLORS, alpha=0.85) for image, ids in pairs],
        ]
        titles += [video["video_id"], "labels"]
    names = legend(toy.STUFF_CLASSES, toy.STUFF_COLORS, width=num_frames * (_PREVIEW_CELL + 8))
    return contact_sheet(rows, titles, footer=names, cell_width=_PREVIEW_CELL)


def _choose(num_frames: int, count: int, damaged: Sequence[int]) -> list[int]:
    """`count` evenly spaced positions, one of them moved to a damaged frame if none is one."""
    count = min(count, num_frames)
    chosen = np.linspace(0, num_frames - 1, count).round().astype(int).tolist()
    if damaged and count > 2 and not set(damaged) & set(chosen):
        nearest = min(range(1, count - 1), key=lambda i: abs(chosen[i] - damaged[0]))
        chosen[nearest] = damaged[0]
    return sorted(chosen)


def _run(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    return args.run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run with `argv` (default: the command line); 2 after a user's mistake."""
    return run_tool(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
