"""THE-Mask on clips of two frames at 480x853, labels out: vss2 against the published way.

    python benchmarks/themask_session.py --sizes b1 --threads 1 2
    python benchmarks/themask_session.py --memory

Weights are filled by the rule of the parity fixtures. Labels of both ways must be equal wherever
the two best classes are not as good as equal. A forward pass of torchvision's ResNet-50 at 480x864
is timed in the same rounds, as a measure that needs neither.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from interleaved import finish, interleave, parser, result, set_threads
from published_themask import published_labels
from torchvision.models import resnet50
from window_session import INPUT, OUTPUT, moving_frames

from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.testing.fixtures import filled_state_dict
from vss2.testing.memory import resident_mb

TIE = 1e-4  # of the two best scores, the tolerance of the parity fixtures
RATIOS = {1: "at least 1.6", 2: "at least 1.8"}
FORWARDS = {1: "at most 6.5", 2: "at most 7.9"}
PEAK = "at most 0.45"


def build(config: str) -> Any:
    """The config's model in eval mode, filled."""
    model = instantiate(load_config(config).model).eval()
    layout = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(filled_state_dict(layout, 32))
    return model


def vss2_labels(model: Any, frames: torch.Tensor, output_size: Sequence[int]) -> torch.Tensor:
    """Labels uint8 [T, H', W'] of a video that is one clip."""
    answers = model.new_session().run(frames, output_size=tuple(output_size), labels_only=True)
    return torch.stack([answer["labels"] for answer in answers])


def check_labels(model: Any, frames: torch.Tensor, output_size: Sequence[int]) -> int:
    """Compare the labels of a clip; returns how many classes occur in it.

    Raises:
        AssertionError: labels differ where the two best classes are not as good as equal.
    """
    labels, scores = published_labels(model, frames, output_size)
    differ = labels != vss2_labels(model, frames, output_size)
    best = scores.topk(2, dim=1).values
    assert (best[:, 0] - best[:, 1])[differ].lt(TIE).all(), "labels differ"
    classes = len(labels.unique())
    print(
        f"labels of {labels.numel()} pixels, {classes} classes: {int(differ.sum())} differ, "
        f"all of them ties within {TIE}"
    )
    return classes


def ways(model: Any, frames: torch.Tensor) -> dict[str, Callable[[], object]]:
    backbone = resnet50().eval()
    image = torch.rand(1, 3, *INPUT)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return backbone(image)

    return {
        "published": lambda: published_labels(model, frames, OUTPUT),
        "vss2": lambda: vss2_labels(model, frames, OUTPUT),
        "resnet50": forward,
    }


def peak(way: str, config: str) -> None:
    """Print by how many MB one clip raises the peak of this process above what it held before."""
    set_threads(1)
    chosen = ways(build(config), moving_frames(2, INPUT))[way]
    before = resident_mb()
    chosen()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before)


def measured_peak(way: str, config: str) -> float:
    """`peak` in a process of its own."""
    command = [sys.executable, __file__, "--peak", way, "--config", config]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def main() -> None:
    options = parser(__doc__.splitlines()[0], rounds=7)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--sizes", nargs="+", default=["b1"], help="of the backbone")
    options.add_argument("--fast", action="store_true", help="with model.fast_attention_masks")
    options.add_argument("--memory", action="store_true", help="peak memory instead of times")
    options.add_argument("--peak", choices=("published", "vss2"), help="of one way, for --memory")
    options.add_argument("--config", help="for --peak")
    args = options.parse_args()
    if args.peak is not None:
        return peak(args.peak, args.config)
    configs = {size: f"themask/themask_mit_{size}_vspw" for size in args.sizes}
    if args.memory:
        for config in configs.values():
            peaks = {way: measured_peak(way, config) for way in ("published", "vss2")}
            print(
                f"{config}: peak above framework and weights {peaks['vss2']:.0f} MB, the published "
                f"way {peaks['published']:.0f} MB: {peaks['vss2'] / peaks['published']:.2f} "
                f"(wanted {PEAK} of 2000 MB)"
            )
        return None
    frames = moving_frames(2, INPUT)
    results = []
    for size, config in configs.items():
        model = build(config)
        model.decode_head.predictor.fast_attention_masks = args.fast
        check_labels(model, frames, OUTPUT)
        for threads in args.threads:
            set_threads(threads)
            times = interleave(ways(model, frames), args.rounds)
            what = f"THE-Mask {size}, clips of 2, {threads} threads"
            for over, under, wanted in (
                ("published", "vss2", RATIOS),
                ("vss2", "resnet50", FORWARDS),
            ):
                goal = wanted.get(threads, "no goal") if size == "b1" else "no goal"
                results.append(result(f"{what}, {over} / {under}", times, over, under, goal))
    finish(results, args.json)
    return None


if __name__ == "__main__":
    main()
