"""SegFormer B1 at 480x853, labels out: the session of vss2 against the published way.

    python benchmarks/segformer_session.py --threads 1
    python benchmarks/segformer_session.py --threads 2

Weights are random with norms that change what they see, which costs the same time as trained
ones. Labels of both ways must be equal wherever the two best classes are not as good as equal.
"""

from __future__ import annotations

import torch
from interleaved import finish, interleave, parser, result, set_threads
from published_segformer import published_labels

from vss2.modeling.backbone import MixTransformer
from vss2.modeling.segformer import SegFormer

INPUT, OUTPUT, NUM_CLASSES = (480, 864), (480, 853), 124
TIE = 1e-6  # of the two best probabilities


def build(size: str) -> SegFormer:
    torch.manual_seed(0)
    model = SegFormer(backbone=MixTransformer(size), num_classes=NUM_CLASSES).eval()
    norm = model.decode_head.linear_fuse.bn
    with torch.no_grad():
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return model


def check_labels(model: SegFormer, frame: torch.Tensor) -> None:
    """Raise AssertionError where the two ways differ in more than rounding."""
    labels, probabilities = published_labels(model, frame, OUTPUT)
    ours = model.new_session().step(frame, output_size=OUTPUT, labels_only=True)["labels"]
    best = probabilities.topk(2, dim=0).values
    differ = labels != ours
    assert (best[0] - best[1])[differ].lt(TIE).all(), "labels differ"
    print(
        f"labels of {labels.numel()} pixels, {len(labels.unique())} classes: "
        f"{int(differ.sum())} differ, all of them ties within {TIE}"
    )


def main() -> None:
    options = parser(__doc__.splitlines()[0], rounds=9)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--size", default="b1", help="of the backbone, default %(default)s")
    args = options.parse_args()
    model = build(args.size)
    frame = torch.randint(0, 256, (3, *INPUT), dtype=torch.uint8)
    check_labels(model, frame)
    session = model.new_session()
    results = []
    for threads in args.threads:
        set_threads(threads)
        times = interleave(
            {
                "published": lambda: published_labels(model, frame, OUTPUT),
                "vss2": lambda: session.step(frame, output_size=OUTPUT, labels_only=True),
            },
            args.rounds,
        )
        what = f"SegFormer {args.size} session, {threads} threads, vss2 / published"
        results.append(result(what, times, "vss2", "published", "at most 0.65"))
    finish(results, args.json)


if __name__ == "__main__":
    main()
