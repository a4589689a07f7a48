"""Does a video method use its other frames? The same budget for all, with and without them.

    OMP_NUM_THREADS=1 python benchmarks/uses_time.py --jobs 2

Trains each method on the toy world with each seed, with as many labelled frames in a step and as
many steps as every other: single frames, clips whose target alone is labelled, or fewer clips that
are labelled throughout; a method of two stages shares its steps between them. Scores it on
`toy_val`: all frames, and the damaged ones, which do not tell their labels while their neighbours
do. Then every frame that a clip holds beside the target becomes a copy of the target: what the
scores of damaged frames lose by that is what the method reads off other frames. Prints Markdown.
Methods that classify each pixel see frames of twice the toy world's size, with the same crops.

A run lies in `<output>/<method>_seed<k>`; one that was stopped goes on, one that is done serves.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import vss2
from vss2.config import apply_overrides, load_config
from vss2.d2.config import instantiate
from vss2.data.build import get_video_dicts
from vss2.data.datasets.toy import STUFF_COLORS, damaged_frames
from vss2.data.image_io import read_image, read_label, write_image
from vss2.data.labels import reduce_labels
from vss2.errors import InputError
from vss2.evaluation import score_vss
from vss2.inference.run_folder import file_digest
from vss2.modeling.session import WindowSession, split
from vss2.visualization import contact_sheet, overlay

ROOT = Path(__file__).resolve().parents[1]
# Rings and crosses are thinner than the stride of scores at an eighth of 96x128 pixels. Methods of
# masks stay with whole frames: learning from parts costs them up to 25 points.
ENLARGED = (
    "dataloader.train.mapper.augmentations.0.scale=[256,192]",
    "dataloader.test.mapper.resize.scale=[256,192]",
)
# Eight clips with one labelled frame each, where a method of single frames takes eight frames.
TARGETS = (
    "dataloader.train.mapper._target_=target_labels.TargetLabelsMapper",
    "dataloader.train.total_batch_size=8",
)
# References nearer than the published ones: toy videos are short and move fast.
NEAR = ("model.window=[-3,-2,-1,0]",)
# Four clips of two labelled frames.
PAIRS = (
    "dataloader.train.mapper.clip_sampler.offsets=[-3,0]",
    "dataloader.train.total_batch_size=4",
)


class Method(NamedTuple):
    """A config, what makes its budget that of the others, and the stage whose weights it needs."""

    config: str
    options: tuple[str, ...] = ()
    first: Method | None = None


METHODS = {
    "segformer_toy": Method("segformer/segformer_toy", ENLARGED),
    "cffm_toy": Method("cffm/cffm_toy", (*ENLARGED, *TARGETS, *NEAR)),
    "mrcfa_toy": Method("mrcfa/mrcfa_toy", (*ENLARGED, *TARGETS)),
    "mask2former_toy": Method("mask2former/mask2former_toy"),
    "mask2former_video": Method("mask2former/mask2former_toy", ("model.clip_length=2", *PAIRS)),
    "themask_toy": Method(
        "themask/themask_toy",
        first=Method(
            "themask/themask_1f_toy",
            # Half the steps of its config, and everything that counts them.
            ("train.max_iter=300", "lr_multiplier.max_iter=300", "model.warmup_iters=150"),
        ),
    ),
}
# What sees the same frames and answers each alone.
BASELINES = {
    "cffm_toy": "segformer_toy",
    "mrcfa_toy": "segformer_toy",
    "mask2former_video": "mask2former_toy",
    "themask_toy": "mask2former_toy",
}
PICTURED = 3  # damaged frames
# One process, no workers beside it: how a run is shared out changes no number.
QUIET = (
    "train.num_threads=1",
    "train.eval_period=0",
    "train.tensorboard=false",
    "train.device=cpu",
)
LOADERS = ("dataloader.train.num_workers=0", "dataloader.test.num_workers=0")

Predictions = dict[str, list[np.ndarray]]


def decode_copies(session: WindowSession, index: int, num_frames: int | None) -> None:
    """`WindowSession._decode` of frame `index` from a clip of copies of that frame."""
    model, own = session._model, session._kept[index]
    clip = model.window.clip(index, num_frames)
    with torch.no_grad():
        copies = [own if frame in clip.targets else model.keep(own) for frame in clip.frames]
        scores = session._decode_clip(copies, [clip.frames.index(index)])
    (session._scores[index],) = split(scores, 1)


def blind(session: WindowSession) -> WindowSession:
    """`session`, whose clips from now on hold copies of the target alone."""
    session._decode = functools.partial(decode_copies, session)
    return session


@torch.no_grad()
def predictions(model: Any, items: Iterable[list[dict[str, Any]]], copies: bool) -> Predictions:
    """Labels uint8 (H, W) of every frame, by video; `copies`: no frame sees another one."""
    new_session = model.new_session
    if copies:
        model.new_session = lambda **options: blind(new_session(**options))
    found: dict[str, dict[int, np.ndarray]] = {}
    try:
        for batch in items:
            for answer in model(batch):
                frames = found.setdefault(answer["video_id"], {})
                frames[answer["frame_index"]] = answer["labels"].numpy()
    finally:
        if copies:
            del model.new_session
    return {video: [frames[t] for t in sorted(frames)] for video, frames in found.items()}


def scored(found: Predictions, num_classes: int) -> dict[str, float]:
    """Percentages: mIoU and consistency of all frames, mIoU of the damaged ones."""
    videos = {video["video_id"]: video for video in get_video_dicts("toy_val")}
    labels = {
        name: np.stack([read_label(frame["label_file"]) for frame in videos[name]["frames"]])
        for name in found
    }
    damaged = {name: frames for name, frames in damaged_frames("val").items() if frames}
    whole = score_vss(((n, labels[n], np.stack(p)) for n, p in found.items()), num_classes)
    spoilt = score_vss(
        ((n, labels[n][t], np.stack([found[n][k] for k in t])) for n, t in damaged.items()),
        num_classes,
    )
    return {
        "mIoU": 100 * whole["mIoU"],
        "consistency8": 100 * whole["consistency8"],
        "consistency16": 100 * whole["consistency16"],
        "VC8": 100 * whole["VC8"],
        "damaged": 100 * spoilt["mIoU"],
    }


def labelled_frames(cfg: Any) -> int:
    """Labelled frames in one step of training."""
    batch = next(iter(instantiate(cfg.dataloader.train)))
    return sum(int(sample["labelled"].sum()) for sample in batch)


def budget(name: str, overrides: Sequence[str]) -> tuple[int, int]:
    """Labelled frames in a step, and steps of all stages."""
    frames, steps = set(), 0
    stage: Method | None = METHODS[name]
    while stage is not None:
        cfg = apply_overrides(load_config(stage.config), [*stage.options, *overrides, *LOADERS])
        frames.add(labelled_frames(cfg))
        steps += int(cfg.train.max_iter)
        stage = stage.first
    if len(frames) > 1:
        raise InputError(f"stages of {name} take different numbers of labelled frames: {frames}")
    return frames.pop(), steps


def train(method: Method, seed: int, folder: Path, overrides: Sequence[str]) -> Path:
    """Train, or go on training; the checkpoint's file."""
    folder.mkdir(parents=True, exist_ok=True)
    start = []
    if method.first is not None:
        weights = train(method.first, seed, folder / "first", overrides).resolve()
        start = [f"train.init_checkpoint={weights}"]
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--resume"]
    command += ["--config-file", method.config]
    command += [f"train.output_dir={folder.resolve()}", f"train.seed={seed}", *start]
    with (folder / "screen.txt").open("a") as screen:
        done = subprocess.run(
            [*command, *QUIET, *LOADERS, *method.options, *overrides],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
            stdout=screen,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise InputError(
            f"training {method.config}, seed {seed}, ended with {done.returncode}; see {folder}"
        )
    return folder / "model_final.pth"


def load(name: str, checkpoint: Path, overrides: Sequence[str]) -> Any:
    """The trained model."""
    method = METHODS[name]
    options = [*method.options, *overrides, *LOADERS]
    return vss2.load(method.config, str(checkpoint), options, "cpu")


def evaluate(name: str, checkpoint: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Scores with the frames of each clip, `true`, and with copies of the target, `copies`."""
    file, digest = checkpoint.parent / "uses_time.json", file_digest(checkpoint)
    if file.exists() and (known := json.loads(file.read_text()))["checkpoint"] == digest:
        return known
    model = load(name, checkpoint, overrides)
    scores: dict[str, Any] = {"checkpoint": digest}
    for kind in ("true", "copies"):
        found = predictions(model, instantiate(model.cfg.dataloader.test), kind == "copies")
        scores[kind] = scored(found, model.num_classes)
    file.write_text(json.dumps(scores, indent=2) + "\n")
    return scores


def picture(name: str, checkpoint: Path, overrides: Sequence[str], file: Path) -> None:
    """Damaged frames, their labels, and what the method makes of them without and with others."""
    model = load(name, checkpoint, overrides)
    found = {
        copies: predictions(model, instantiate(model.cfg.dataloader.test), copies)
        for copies in (True, False)
    }
    rows, titles = [], []
    for video in get_video_dicts("toy_val"):
        late = [t for t in damaged_frames("val")[video["video_id"]] if t > 8]
        if not late or len(rows) == PICTURED:
            continue
        frame = video["frames"][late[0]]
        image, truth = (
            read_image(frame["file_name"]),
            reduce_labels(read_label(frame["label_file"])),
        )
        maps = [truth, *(found[copies][video["video_id"]][late[0]] for copies in (True, False))]
        rows.append([image, *(overlay(image, labels, STUFF_COLORS, alpha=0.8) for labels in maps)])
        titles.append(f"{video['video_id']}\n{late[0]}")
    columns = ["frame", "labels", "copies of the frame", "its window"]
    sheet = contact_sheet(rows, titles, column_titles=columns, cell_width=144)
    write_image(file, sheet)


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a line per method, the mean and each seed."""
    lines = [
        "| method | mIoU | consistency8 | consistency16 | VC8 | mIoU, damaged | with copies |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        columns = [
            spread([run["true"][key] for run in runs])
            for key in ("mIoU", "consistency8", "consistency16", "VC8", "damaged")
        ]
        columns.append(spread([run["copies"]["damaged"] for run in runs]))
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return "\n".join(lines)


def verdicts(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What holds and what does not, one line each."""

    def average(name: str, key: str) -> float:
        return mean(run["true"][key] for run in results[name])

    lines = []
    for name, baseline in BASELINES.items():
        if name not in results:
            continue
        if baseline in results:
            for key in ("mIoU", "consistency8"):
                gain = average(name, key) - average(baseline, key)
                verb = "better" if gain > 0 else "NOT better"
                lines.append(f"- {name}: {key} {verb} than {baseline} on the mean ({gain:+.2f})")
        losses = [run["true"]["damaged"] - run["copies"]["damaged"] for run in results[name]]
        verb = "lower" if min(losses) > 0 else "do NOT lower"
        each = ", ".join(f"{-loss:+.2f}" for loss in losses)
        lines.append(f"- {name}: copies {verb} mIoU on damaged frames with every seed ({each})")
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = options.add_argument
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--output", type=Path, default=Path("output/uses_time"))
    add("--jobs", type=int, default=1, help="runs at the same time, each on one thread")
    add("--override", nargs="+", default=[], metavar="key=value", help="of every config")
    add("--pictures", type=Path, metavar="DIR", help="write <method>.png there, of the first seed")
    args = options.parse_args()
    torch.set_num_threads(1)
    budgets = {name: budget(name, args.override) for name in args.methods}
    if len(set(budgets.values())) > 1:
        raise InputError(f"budgets (labelled frames in a step, steps) differ: {budgets}")
    runs = [(name, seed) for seed in args.seeds for name in args.methods]
    with ThreadPoolExecutor(args.jobs) as pool:
        checkpoints = pool.map(
            lambda run: train(
                METHODS[run[0]], run[1], args.output / f"{run[0]}_seed{run[1]}", args.override
            ),
            runs,
        )
        files = dict(zip(runs, tqdm(checkpoints, total=len(runs), unit="run"), strict=True))
    results = {
        name: [evaluate(name, files[name, seed], args.override) for seed in args.seeds]
        for name in args.methods
    }
    frames, steps = next(iter(budgets.values()))
    print(f"{frames} labelled frames a step, {steps} steps; mean (seeds {args.seeds})\n")
    print(table(results), *verdicts(results), sep="\n")
    for name in args.methods if args.pictures else []:
        args.pictures.mkdir(parents=True, exist_ok=True)
        checkpoint = files[name, args.seeds[0]]
        picture(name, checkpoint, args.override, args.pictures / f"{name}.png")


if __name__ == "__main__":
    main()
