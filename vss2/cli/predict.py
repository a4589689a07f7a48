"""`vss2 predict`, `tools/predict.py`: segment frames from a folder, video, camera or pipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

import vss2
from vss2.cli import predict_masks, run_tool
from vss2.d2.config import instantiate
from vss2.d2.data import MetadataCatalog
from vss2.data import datasets  # noqa: F401  (registers the data sets' class names)
from vss2.data.video_io import FrameSource, open_source
from vss2.errors import InputError
from vss2.inference import ResultWriter, RunFolder, Selection, VideoPredictor, run
from vss2.inference.exports import Color, read_palette
from vss2.inference.run_folder import config_values, file_digest
from vss2.inference.runner import RunReport, Stopped
from vss2.interrupt import StopRequest
from vss2.visualization import palette

DEFAULT_FPS = 15.0

EPILOG = """\
Written to OUTPUT: labels/<frame>.png (class or object ids), overlay.mp4, contact_sheet.png and
predict.json, which says what run this is; docs/PREDICT.md describes every option and file.

example, from nothing to a film in some minutes on two CPU cores:
  vss2 data toy --output output/world
  vss2 train --config-file segformer/segformer_toy train.output_dir=output/toy --resume
  vss2 predict --config-file segformer/segformer_toy --weights output/toy/model_final.pth \\
      --input output/world/data/val_0000/origin --output output/val_0000 --overwrite
"""


def build_parser() -> argparse.ArgumentParser:
    """The tool's options."""
    parser = argparse.ArgumentParser(
        prog="vss2 predict",
        description="Segment frames of a folder, video file, camera or pipe with a trained model, "
        "or follow objects through them from a mask of the first frame.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config-file", required=True, help="config: a path or a short name like segformer/…")
    add("--weights", required=True, help="checkpoint of that model")
    add(
        "--input",
        required=True,
        help="folder of images, image or video file, camera:0, or - for JPEG and PNG images (or "
        "raw frames, see --raw) on standard input",
    )
    add("--output", required=True, help="folder for the results")
    add("--resume", action="store_true", help="go on with the same run if it was stopped")
    add("--overwrite", action="store_true", help="replace the run in OUTPUT")
    which = parser.add_argument_group("which frames")
    which.add_argument("--start", type=int, default=0, metavar="N", help="first frame, from 0")
    which.add_argument("--end", type=int, metavar="N", help="frame to stop before; default: all")
    which.add_argument(
        "--every", type=int, default=1, metavar="N", help="results for every N-th frame only"
    )
    which.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("LONG", "SHORT"),
        help="edges of the box that frames are fitted into for the network, instead of the "
        "config's; results keep the frames' own size",
    )
    which.add_argument(
        "--raw",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="standard input holds raw RGB frames of this size, 8 bits a value",
    )
    what = parser.add_argument_group("what is written")
    what.add_argument("--rle", action="store_true", help="masks as COCO RLE, rle/<frame>.json")
    what.add_argument(
        "--scores", action="store_true", help="scores as float16 (K, H, W), scores/<frame>.npz"
    )
    what.add_argument(
        "--scores-stride", type=int, default=1, metavar="N", help="of every N-th row and column"
    )
    what.add_argument(
        "--side-by-side", action="store_true", help="frame beside overlay, side_by_side.mp4"
    )
    what.add_argument(
        "--palette", metavar="FILE.json", help="class names and colours instead of the data set's"
    )
    what.add_argument(
        "--fps",
        type=float,
        help=f"of the videos; default: the input's, divided by --every, else {DEFAULT_FPS:g}",
    )
    what.add_argument("--alpha", type=float, default=0.5, help="opacity of the labels, 0 to 1")
    predict_masks.add_options(parser)
    add("--device", help="cuda, cpu, …; default: the config's train.device")
    add("overrides", nargs="*", metavar="key=value", help="config overrides")
    return parser


def class_names_and_colors(
    model: Any, palette_file: str | None = None
) -> tuple[list[str], list[Color]]:
    """Names and colours of the model's classes, from a file or the config's test set.

    Raises:
        InputError: file or data set name another number of classes than the model has.
    """
    if palette_file is not None:
        names, colors = read_palette(palette_file)
        if len(names) != model.num_classes:
            raise InputError(
                f"The model has {model.num_classes} classes, but the palette {palette_file} has "
                f"{len(names)} entries."
            )
        return names, colors
    dataset = model.cfg.dataloader.test.dataset
    name = dataset if isinstance(dataset, str) else str(dataset[0])
    metadata = MetadataCatalog.get(name)
    names = list(metadata.get("stuff_classes") or [])
    if not names:
        return [f"class {k}" for k in range(model.num_classes)], palette(model.num_classes)
    if len(names) != model.num_classes:
        raise InputError(
            f"The model has {model.num_classes} classes, but the config's test set {name!r} names "
            f"{len(names)}: change model.num_classes or dataloader.test.dataset."
        )
    colors = metadata.get("stuff_colors") or palette(len(names))
    return names, [(int(r), int(g), int(b)) for r, g, b in colors]


def check_options(args: argparse.Namespace) -> None:
    """Raise InputError for values that no run can have."""
    if not 0 <= args.alpha <= 1:
        raise InputError(f"--alpha must be between 0 and 1, got {args.alpha}.")
    if args.fps is not None and not args.fps > 0:
        raise InputError(f"--fps must be positive, got {args.fps}.")
    if args.resume and args.overwrite:
        raise InputError("--resume keeps what is there and --overwrite does not: choose one.")
    if args.scores_stride < 1 or (args.scores_stride > 1 and not args.scores):
        raise InputError(
            f"--scores-stride must be at least 1 and comes with --scores, got {args.scores_stride}."
        )
    for name in ("size", "raw"):
        if getattr(args, name) is not None and min(getattr(args, name)) < 1:
            raise InputError(f"--{name} must be positive, got {getattr(args, name)}.")


def set_size(cfg: Any, size: Sequence[int]) -> None:
    """Put `--size` in the place of the box of the config's test resize.

    Raises:
        InputError: the config's resize has no box.
    """
    resize = cfg.dataloader.test.mapper.get("resize")
    if resize is None or "scale" not in resize:
        raise InputError("--size: the config's dataloader.test.mapper.resize has no scale to set.")
    resize.scale = [max(size), min(size)]


def predict(args: argparse.Namespace) -> int:
    """Run the tool with parsed options; returns the exit status."""
    check_options(args)
    selection = Selection(args.start, args.end, args.every)
    folder = RunFolder(args.output)
    folder.check(args.resume, args.overwrite)
    source = open_source(args.input, raw_size=tuple(args.raw) if args.raw else None)
    selection.check(source)
    if source.live and args.resume:
        raise InputError(f"--resume: {source.path} cannot be read a second time.")
    masks = predict_masks.given_masks(args, source) if args.mask else None
    model: Any = vss2.load(
        args.config_file, weights=args.weights, overrides=args.overrides, device=args.device
    )
    propagates = predict_masks.check_model(args, model)
    session = predict_masks.session_options(args, model) if propagates else {}
    if args.size:
        set_size(model.cfg, args.size)
    if propagates:
        names, colors = predict_masks.object_names_and_colors(args.palette)
    else:
        names, colors = class_names_and_colors(model, args.palette)
    writer = ResultWriter(
        args.output,
        names,
        colors,
        fps=args.fps or (source.fps / args.every if source.fps else DEFAULT_FPS),
        alpha=args.alpha,
        rle=args.rle,
        scores=args.scores,
        side_by_side=args.side_by_side,
        background=predict_masks.BACKGROUND if propagates else None,
    )
    status = folder.begin(
        identity(args, model, source, writer)
        | ({} if masks is None else {"masks": masks.identity(), "session": session}),
        about={"input": str(source.path), "config": args.config_file, "weights": args.weights},
        resume=args.resume,
        overwrite=args.overwrite,
        resumable=not source.live,
    )
    if status == "complete":
        print(f"{args.output} is complete: {folder.frames()} frames. Nothing to do.")
        return 0
    resize = instantiate(model.cfg.dataloader.test.mapper.get("resize"))
    stride = args.scores_stride if args.scores else None
    predictor = VideoPredictor(model, resize, stride, session, masks)
    try:
        report = run_shown(predictor, source, writer, selection, status == "resumed")
    except Stopped as stopped:
        folder.abandon()
        again = "--resume instead of --overwrite" if args.overwrite else "--resume"
        raise Stopped(f"{stopped}; the same command with {again} goes on from there") from None
    except BaseException:
        folder.abandon()
        raise
    folder.complete(report.frames)
    show(report, args.input, writer)
    for path in masks.unused if masks is not None else ():
        print(f"not used, no frame of its name came: {path}")
    return 0


def identity(
    args: argparse.Namespace, model: Any, source: FrameSource, writer: ResultWriter
) -> dict[str, Any]:
    """All that decides on the results, in JSON's types."""
    return {
        "vss2": vss2.__version__,
        "input": source.identity(),
        "weights": file_digest(args.weights),
        "config": config_values(model.cfg),
        "device": str(model.device.type),
        "outputs": writer.outputs,
        "options": {
            **{name: getattr(args, name) for name in ("start", "end", "every", "raw", "alpha")},
            "scores_stride": args.scores_stride,
            "fps": writer.fps,
        },
        "classes": {"names": writer.class_names, "colors": writer.colors},
    }


def run_shown(
    predictor: VideoPredictor,
    source: FrameSource,
    writer: ResultWriter,
    selection: Selection,
    resume: bool,
) -> RunReport:
    """`run` with a progress bar; Ctrl-C ends it after the frame in progress."""
    total = None
    if source.num_frames is not None:
        total = len(range(source.num_frames)[selection.start : selection.end : selection.every])
    request = StopRequest("ending after this frame; press Ctrl-C again to end at once")
    with request, tqdm(total=total, unit="frame", desc="predict") as bar:
        return run(
            predictor,
            source,
            writer,
            selection,
            resume=resume,
            stop=request,
            progress=bar.update,
        )


def show(report: RunReport, name: str, writer: ResultWriter) -> None:
    """Print what a run did."""
    kept = f", {report.kept} of them before" if report.kept else ""
    print(f"{report.frames} frames of {name} segmented{kept}.", end=" ")
    print(
        f"{report.seconds:.1f} s; the network waited {report.waited_for_frames:.1f} s for frames "
        f"and {report.waited_for_writers:.1f} s for writing. Written:"
    )
    for path in writer.paths():
        print(f"  {path}")


def _run(argv: Sequence[str] | None) -> int:
    return predict(build_parser().parse_intermixed_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run with `argv` (default: the command line); 2 after a user's mistake."""
    return run_tool(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
