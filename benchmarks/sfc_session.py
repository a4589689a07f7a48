"""SFC at 480x854, a mask of three objects: the session of vss2 against the published way.

    python benchmarks/sfc_session.py --model fine --threads 1 2
    python benchmarks/sfc_session.py --model fused --threads 1 2
    python benchmarks/sfc_session.py --memory

Weights are random. Times are of one frame with its whole context of 20, encoders and answer
included. Of the published way a slice of the queries is timed; the encoder and the copy of the keys
count once, the rest times all queries over those of the slice. Soft labels of both ways must agree
in every cell whose last chosen key is better than the first one left out by more than rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from interleaved import compare, finish, parser, set_threads
from published_sfc import encode, gather_keys, propagate, radius_mask

from vss2.layers.local_correlation import local_correlation
from vss2.modeling.losses import resize_scores
from vss2.projects.sfc import SFC, FrameEncoder
from vss2.testing.fixtures import image_clip

SIZE, CONTEXT = (480, 854), 20
SETTINGS = {
    "fine": {"radius": 12, "top_k": 10, "temperature": 0.05},
    "fused": {"radius": 15, "top_k": 15, "temperature": 0.1},
}
WANTED = {"fine": "at least 7", "fused": "at least 5"}
TIE = 1e-6  # of the products of the last chosen key and the next one
DIFFER = 0.0005  # of the pixels may, as in the published comparison


def build(kind: str) -> SFC:
    torch.manual_seed(0)
    semantic = FrameEncoder(50) if kind == "fused" else None
    model = SFC(
        fine=FrameEncoder(18), semantic=semantic, session={"context": CONTEXT, **SETTINGS[kind]}
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def clip(count: int) -> torch.Tensor:
    return torch.from_numpy(image_clip(count, *SIZE)).permute(0, 3, 1, 2).contiguous()


def filled_session(model: SFC, frames: torch.Tensor):
    """A session that has seen all frames, the first with a mask of three objects."""
    mask = torch.zeros(SIZE, dtype=torch.uint8)
    mask[60:300, 80:300], mask[200:420, 400:560], mask[20:160, 600:820] = 1, 2, 3
    session = model.new_session()
    for index, frame in enumerate(frames):
        session.step(frame, mask=mask if index == 0 else None, need_output=False)
    return session


class Published:
    """The published way on the context of a session."""

    def __init__(self, model: SFC, session, frame: torch.Tensor, queries: int):
        context = session._context()
        self.model, self.frame, self.queries = model, frame, queries
        slots = zip(context.maps, context.repeats, strict=True)
        self.maps = [frame.contiguous() for frame, count in slots for _ in range(count)]
        self.labels = torch.stack(context.labels, dim=1).flatten(2)
        self.options = context.top_k, context.temperature
        self.size = self.maps[0].shape[1:]
        self.mask = radius_mask(*self.size, session.radius)

    def first_part(self) -> None:
        self.query = encode(self.model, self.frame).flatten(1)
        self.keys = gather_keys(self.maps)

    def second_part(self, first: int = 0) -> torch.Tensor:
        here = slice(first, first + self.queries)
        mask = self.mask[:, here].contiguous()
        return propagate(self.keys, self.query[:, here], self.labels, mask, *self.options)

    def all_labels(self) -> torch.Tensor:
        """Soft labels [L, h, w]."""
        self.first_part()
        parts = [self.second_part(q) for q in range(0, self.query.shape[1], self.queries)]
        return torch.cat(parts, dim=1).unflatten(1, tuple(self.size))

    def seconds(self) -> float:
        """Of one frame, by a slice of its queries."""
        total = self.query.shape[1]
        return timed(self.first_part) + timed(self.second_part) * total / self.queries


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.no_grad()
def check_labels(model: SFC, session, published: Published, frame: torch.Tensor) -> None:
    """Raise AssertionError where the two ways differ in more than rounding."""
    expected, context = published.all_labels(), session._context()
    more = local_correlation(
        encode(model, frame), context.maps, context.radii, context.top_k + 1, context.repeats
    )
    clear = more.values[:, -2] - more.values[:, -1] > TIE
    answer = session.step(frame)
    soft = session._entries[session._count - 1].labels
    error = (soft - expected).abs().amax(0).flatten()
    labels = resize_scores(expected[None], SIZE)[0].argmax(0)
    differ = int((labels != answer["mask"]).sum())
    print(
        f"{int(clear.sum())} of {len(clear)} cells have a clear choice of keys: their soft labels "
        f"differ by {error[clear].max():.1e} at most, others by {error.max():.1e}; "
        f"{differ} of {labels.numel()} pixels get another label"
    )
    assert error[clear].max() < 1e-5, "soft labels differ"
    assert differ <= DIFFER * labels.numel(), "labels differ"


def resident() -> float:
    """Memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def measure_memory() -> None:
    model, frames = build("fine"), clip(CONTEXT + 2)
    session = filled_session(model, frames)
    for count in (CONTEXT + 2, 2 * CONTEXT, 3 * CONTEXT):
        while session._num_frames < count:
            session.step(frames[session._num_frames % len(frames)], need_output=False)
        held = sum(entry.features.untyped_storage().nbytes() for entry in session._entries.values())
        print(
            f"after {count} frames: {len(session._entries)} frames held, {held / 2**20:.0f} MB of "
            f"features, process {resident():.0f} MB"
        )


@torch.no_grad()
def main() -> None:
    options = parser(__doc__.splitlines()[0], rounds=5)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--model", choices=list(SETTINGS), default="fine")
    options.add_argument("--queries", type=int, default=642, help="in a slice, default %(default)s")
    options.add_argument("--memory", action="store_true", help="memory of the session, no times")
    args = options.parse_args()
    if args.memory:
        measure_memory()
        return
    set_threads(1)  # both ways then round alike; each count of threads rounds in its own way
    model, frames = build(args.model), clip(CONTEXT + 3)
    session = filled_session(model, frames[:-2])
    published = Published(model, session, frames[-2], args.queries)
    check_labels(model, session, published, frames[-2])
    results = []
    for threads in args.threads:
        set_threads(threads)
        ways = {
            "published": published.seconds,
            "vss2": lambda: timed(lambda: session.step(frames[-1], labels_only=True)),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.rounds + 1):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                seconds = ways[name]()
                if number:  # the first round does not count
                    times[name].append(seconds)
        medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
        what = f"SFC {args.model}, {threads} threads, published / vss2"
        results.append(
            {"what": what, "wanted": WANTED[args.model], "median_s": medians}
            | compare(times, "published", "vss2")
        )
    finish(results, args.json)


if __name__ == "__main__":
    main()
