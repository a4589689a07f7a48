"""`vss2 cffm prototypes`: cluster the features of every video for CFFM++.

Ten frames of each video pass a trained CFFM; the embedding at stride 8 is clustered by k-means, and
`<output>/<video>/centers.pt` holds the centres, [1, K, C]. Videos that have theirs are left alone,
so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import vss2
from vss2.checkpoint_io import atomic_write
from vss2.config import apply_overrides, load_config
from vss2.d2.config import instantiate
from vss2.d2.engine import launch
from vss2.d2.utils import comm
from vss2.data.build import get_video_dicts
from vss2.data.image_io import read_image
from vss2.errors import InputError

from .kmeans import kmeans, random_points
from .model import CFFM
from .prototypes import CENTERS, PrototypeStore

NUM_FRAMES = 10


def prototype_frames(num_frames: int, count: int = NUM_FRAMES) -> list[int]:
    """Positions of the frames that stand for a video, as published: the middles of `count` equal
    intervals. What lies beyond them is left out; a video of fewer frames gives frame 0 each time.
    """
    interval = num_frames // count
    return [int((k + 0.5) * interval) for k in range(count)]


def read_frames(video: dict, positions: Sequence[int], resize: Any) -> torch.Tensor:
    """Frames of a video dict as the network shall see them, uint8 [T, 3, H, W].

    Args:
        resize: that of the test mapper; None keeps the frames' own size.
    """
    frames = []
    for position in positions:
        image = read_image(video["frames"][position]["file_name"])
        image = image if resize is None else resize(image)
        frames.append(torch.from_numpy(image).permute(2, 0, 1))
    return torch.stack(frames)


@torch.no_grad()
def video_points(model: CFFM, frames: torch.Tensor) -> torch.Tensor:
    """Points to cluster, [T*h*w, C], ordered by frame, row and column; frames uint8 [T, 3, H, W].

    Frames are encoded one by one, so memory does not grow with their number.
    """
    points = []
    for frame in frames:
        model.check_size(*frame.shape[1:])
        embedding = model.encode(model.normalize(frame[None].to(model.device)))["stride8"]
        points.append(embedding[0].flatten(1).T)
    return torch.cat(points).float().contiguous()


def main(argv: Sequence[str] | None = None) -> int:
    """Cluster the features of every video into the prototypes of CFFM++."""
    args = _parse(argv)
    if args.num_gpus > 1:
        launch(_work, args.num_gpus, dist_url="auto", args=(args,))
    else:
        _work(args)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vss2 cffm prototypes",
        description=__doc__,
        epilog="example:\n"
        "  vss2 cffm prototypes --config-file cffm/cffm_toy \\\n"
        "      --weights output/cffm_toy/model_final.pth \\\n"
        "      --output output/cffm_toy/prototypes --datasets toy_train toy_val",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="CONFIG", help="config of a CFFM")
    add("--weights", required=True, metavar="FILE", help="its checkpoint")
    add("--output", required=True, metavar="DIR", help="where <video>/centers.pt go")
    add(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help="whose videos (those of dataloader.train and dataloader.test)",
    )
    add("--clusters", type=int, default=100, metavar="K", help="prototypes per video (100)")
    add("--seed", type=int, default=0, metavar="N", help="of the first centres (0)")
    add("--num-gpus", type=int, default=1, metavar="N", help="processes that share the videos (1)")
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)
    # A list option takes what follows it, overrides too.
    names = args.datasets or []
    args.overrides = [*args.overrides, *(name for name in names if "=" in name)]
    args.datasets = [name for name in names if "=" not in name]
    if args.clusters < 1 or args.num_gpus < 1 or args.seed < 0:
        raise InputError("--clusters and --num-gpus must be at least 1, --seed at least 0")
    return args


def _work(args: argparse.Namespace) -> None:
    cfg = apply_overrides(load_config(args.config_file), args.overrides)
    names = args.datasets or _names(cfg)
    videos = {video["video_id"]: video for video in get_video_dicts(names)}
    output = Path(args.output)
    missing = [name for name in sorted(videos) if not _is_done(output, name, args.clusters)]
    comm.synchronize()
    if comm.is_main_process():
        print(f"{len(videos) - len(missing)} of {len(videos)} videos had prototypes already")
    model = vss2.load(args.config_file, args.weights, args.overrides, _device(cfg))
    if not isinstance(model, CFFM):
        raise InputError(f"prototypes come from a CFFM; {args.config_file} is another model")
    resize = instantiate(cfg.dataloader.test.mapper).resize
    mine = missing[comm.get_rank() :: comm.get_world_size()]
    for name in tqdm(mine, unit="video", disable=not comm.is_main_process()):
        _write(output, name, _centers(model, resize, videos[name], args))
    comm.synchronize()
    if comm.is_main_process():
        print(f"prototypes of {len(videos)} videos are in {output}")


def _names(cfg: Any) -> list[str]:
    """Data sets of the config, each once."""
    names: list[str] = []
    for loader in (cfg.dataloader.train, cfg.dataloader.test):
        dataset = loader.dataset
        names += [dataset] if isinstance(dataset, str) else list(dataset)
    return list(dict.fromkeys(names))


def _device(cfg: Any) -> str | None:
    device = cfg.get("train", {}).get("device")
    if device is None and torch.cuda.is_available():
        return f"cuda:{comm.get_local_rank()}"
    return device


def _is_done(output: Path, video: str, clusters: int) -> bool:
    """Whether the video's file is there and whole, with this number of prototypes."""
    if not (output / video / CENTERS).is_file():
        return False
    found = len(PrototypeStore(output)[video])
    if found != clusters:
        raise InputError(
            f"{output / video / CENTERS} holds {found} prototypes, {clusters} are asked for; "
            "choose another --output or remove the folder"
        )
    return True


def _centers(model: CFFM, resize: Any, video: dict, args: argparse.Namespace) -> torch.Tensor:
    positions = prototype_frames(len(video["frames"]))
    points = video_points(model, read_frames(video, positions, resize))
    start = random_points(points.cpu(), args.clusters, args.seed, video["video_id"])
    return kmeans(points, start.to(points.device)).cpu()


def _write(output: Path, video: str, centers: torch.Tensor) -> None:
    file = output / video / CENTERS
    os.makedirs(file.parent, exist_ok=True)
    with atomic_write(file) as temporary:
        torch.save(centers[None].clone(), temporary)
