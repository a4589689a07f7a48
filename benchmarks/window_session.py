"""What the yardsticks of methods with a window share: the session against the published way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from interleaved import finish, interleave, parser, result, set_threads

from vss2.modeling.backbone import MixTransformer

INPUT, OUTPUT, NUM_CLASSES = (480, 864), (480, 853), 124
TIE = 1e-5  # of the two best probabilities

PublishedLabels = Callable[[Any, torch.Tensor, Sequence[int]], tuple[torch.Tensor, torch.Tensor]]


def build(kind: Callable[..., Any], size: str, **options: Any) -> Any:
    """A model with random weights and norms that change what they see, in eval mode."""
    torch.manual_seed(0)
    model = kind(backbone=MixTransformer(size), num_classes=NUM_CLASSES, **options).eval()
    norm = model.decode_head.linear_fuse.bn
    with torch.no_grad():
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return model


def moving_frames(count: int, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [T, 3, H, W]: a pattern that drifts by 8 pixels a frame, under noise."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    coarse = torch.rand(1, 3, height // 16, (width + 8 * count) // 16 + 1, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bilinear")[0]
    frames = torch.stack([wide[:, :, 8 * t : 8 * t + width] for t in range(count)])
    return (200 * frames + 55 * torch.rand(frames.shape, generator=generator)).to(torch.uint8)


def check_labels(
    model: Any,
    published_labels: PublishedLabels,
    frames: torch.Tensor,
    output_size: Sequence[int],
) -> int:
    """Compare the labels of the last frame; returns how many classes occur in it.

    Raises:
        AssertionError: labels differ where the two best classes are not as good as equal.
    """
    last = len(frames) - 1
    clip = frames[list(model.window.clip(last).frames)]
    labels, probabilities = published_labels(model, clip, output_size)
    session = model.new_session()
    for frame in frames[:-1]:
        session.step(frame, need_output=False)
    ours = session.step(frames[-1], output_size=output_size, labels_only=True)["labels"]
    best = probabilities.topk(2, dim=0).values
    differ = labels != ours
    assert (best[0] - best[1])[differ].lt(TIE).all(), "labels differ"
    classes = len(labels.unique())
    print(
        f"labels of {labels.numel()} pixels, {classes} classes: {int(differ.sum())} differ, "
        f"all of them ties within {TIE}"
    )
    return classes


def run(
    doc: str,
    name: str,
    build_size: Callable[[str], Any],
    published_labels: PublishedLabels,
    wanted: dict[int, dict[str, float]],
) -> None:
    """Measure each size of the backbone with each number of threads, and print.

    Args:
        doc: the script's text, whose first line describes it.
        name: of the method.
        build_size: the model of a size.
        published_labels: labels of the last frame of a clip, the published way.
        wanted: least quotient by threads and size.
    """
    options = parser(doc.splitlines()[0], rounds=7)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--sizes", nargs="+", default=["b1", "b2", "b5"], help="of the backbone")
    args = options.parse_args()
    frames = moving_frames(10, INPUT)
    results = []
    for size in args.sizes:
        model = build_size(size)
        check_labels(model, published_labels, frames, OUTPUT)
        clip = frames[list(model.window.clip(9).frames)]
        session = model.new_session()
        for frame in frames:  # as in the middle of a video
            session.step(frame, need_output=False)
        for threads in args.threads:
            set_threads(threads)
            times = interleave(
                {
                    "published": lambda: published_labels(model, clip, OUTPUT),  # noqa: B023
                    "vss2": lambda: session.step(  # noqa: B023
                        frames[-1], output_size=OUTPUT, labels_only=True
                    ),
                },
                args.rounds,
            )
            what = f"{name} {size} session, {threads} threads, published / vss2"
            least = wanted.get(threads, {}).get(size)
            goal = "no goal" if least is None else f"at least {least}"
            results.append(result(what, times, "published", "vss2", goal))
    finish(results, args.json)
