"""STCN's session against the published core: whole clips, and the memory read alone.

python benchmarks/stcn_session.py --size 480 853
"""

from __future__ import annotations

import torch
from interleaved import finish, interleave, parser, result, set_threads
from published_stcn import PublishedCore

from vss2.modeling.backbone import ResNet
from vss2.modeling.memory_bank import MemoryBank, MemoryEntry
from vss2.projects.stcn import STCN
from vss2.testing.fixtures import filled_state_dict, image_clip

TIE = 1e-5  # of similarities, which are of the order of 10
TOLERANCE = 1e-4  # on probabilities


def build(depth: int = 50, **options: int) -> STCN:
    """A network with the weights of the parity tests' rule, which spreads keys and masks.

    As initialised, similarities are so alike that rounding decides which of them are the best.
    """
    encoder = ResNet(depth, strides=(1, 2, 2), stage_names=("res2", "layer2", "layer3"))
    model = STCN(key_encoder=encoder, **options)
    layout = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(filled_state_dict(layout))
    return model.eval()


def clip(count: int, height: int, width: int) -> torch.Tensor:
    """Moving waves with noise, uint8 [T, 3, H, W]."""
    return torch.from_numpy(image_clip(count, height, width)).permute(0, 3, 1, 2).contiguous()


def first_mask(count: int, height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(height, width, dtype=torch.uint8)
    for i in range(count):
        left = (2 * i + 1) * width // (2 * count + 1)
        mask[height // 4 : height // 2, left : left + width // (2 * count + 1)] = i + 1
    return mask


def ours(model: STCN, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[1 + O, T, H, W] of a session."""
    session = model.new_session()
    out = [session.step(frame, mask=None if t else mask) for t, frame in enumerate(frames)]
    list(session.finish())
    return torch.stack([answer["prob"] for answer in out], dim=1)


def published(model: STCN, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return PublishedCore(model).propagate(frames, mask)


def check(model: STCN, frames: torch.Tensor, mask: torch.Tensor) -> str:
    """What the two ways' probabilities differ by.

    Where the 20th and 21st best position are as good as equal, rounding decides which of them
    answers, in any other order of additions too; such frames may differ by more in some places.

    Raises:
        AssertionError: half of the frames, or more than 1 % of the values, differ by more than
            rounding.
    """
    error = (ours(model, frames, mask) - published(model, frames, mask)).abs()
    median = error.amax((0, 2, 3)).median().item()
    share = (error > TOLERANCE).float().mean().item()
    assert median <= TOLERANCE, f"probabilities differ by {median}"
    assert share <= 0.01, f"{share:.2%} of the probabilities differ by more than {TOLERANCE}"
    return (
        f"probabilities of the median frame differ by {median:.2g} at most, "
        f"{share:.2%} of all by more than {TOLERANCE}"
    )


def filled(
    model: STCN, memory_frames: int, objects: int, grid: tuple[int, int]
) -> tuple[MemoryBank, PublishedCore, torch.Tensor]:
    """Both memories with the same frames, and a query."""
    height, width = grid
    keys, dim = 64, model.key_comp.out_channels
    bank, core = MemoryBank(20, None, None), PublishedCore(model)
    for _ in range(memory_frames):
        key, value = torch.randn(1, keys, *grid), torch.randn(objects, dim, *grid)
        core.remember(key, value)
        rows = value.permute(0, 2, 3, 1).reshape(objects, height * width, dim)
        bank.append(MemoryEntry(key[0].flatten(1).t(), rows))
    return bank, core, torch.randn(1, keys, *grid)


class Continued:
    """A clip's next frames with a full memory: `memory_frames` of random keys and values.

    Nothing is remembered meanwhile, so that each call sees the same memory.
    """

    def __init__(self, model: STCN, memory_frames: int, objects: int, size: tuple[int, int]):
        grid = tuple(-(-side // 16) for side in size)
        bank, self.core, _ = filled(model, memory_frames, objects, (grid[0], grid[1]))
        self.frame = clip(1, *size)[0]
        self.session = model.new_session(mem_every=10**6)
        self.session.step(self.frame, mask=first_mask(objects, *size))
        self.session._remember_pending()
        self.session._bank = bank
        left, right, top, bottom = self.session._placement().padding
        self.image = torch.nn.functional.pad(
            model.normalize(self.frame[None]), (left, right, top, bottom)
        )

    @torch.no_grad()
    def published(self) -> torch.Tensor:
        from published_stcn import aggregate

        key, thin, _, f8, f4 = self.core.encode(self.image)
        return aggregate(self.core.decode(self.core.read(key), thin, f8, f4))

    def ours(self) -> torch.Tensor:
        return self.session.step(self.frame)["prob"]


def main() -> None:
    options = parser(__doc__.splitlines()[0], rounds=5)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--size", type=int, nargs=2, default=(480, 853))
    options.add_argument("--frames", type=int, default=7, help="of the short clips")
    options.add_argument("--objects", type=int, nargs="+", default=[1, 2])
    options.add_argument("--memory", type=int, default=20, help="memory frames of the long clips")
    args = options.parse_args()
    set_threads(args.threads)
    model = build()
    size = (args.size[0], args.size[1])
    results = []
    for count in args.objects:
        frames, mask = clip(args.frames, *size), first_mask(count, *size)
        print(f"{count} objects: {check(model, frames, mask)}", flush=True)
        times = interleave(
            {
                "published": lambda f=frames, m=mask: published(model, f, m),
                "vss2": lambda f=frames, m=mask: ours(model, f, m),
            },
            args.rounds,
        )
        what = f"clips of {args.frames} frames, {count} objects, published / vss2"
        results.append(result(what, times, "published", "vss2", "at least 1.1"))

        going = Continued(model, args.memory, count, size)
        times = interleave({"published": going.published, "vss2": going.ours}, args.rounds)
        what = f"a frame at {args.memory} memory frames, {count} objects, published / vss2"
        results.append(result(what, times, "published", "vss2", "at least 1.35"))

        grid = (-(-size[0] // 16), -(-size[1] // 16))
        bank, core, query = filled(model, args.memory, count, grid)
        with torch.no_grad():
            error = (bank.read(query) - core.read(query)).abs().amax((0, 1))
            clear = core.margin(query) > TIE
            assert clear.float().mean() > 0.99, "too many ties to compare"
            assert error[clear].max() <= TOLERANCE, f"readouts differ by {error[clear].max()}"
            times = interleave(
                {
                    "published": lambda c=core, q=query: c.read(q),
                    "vss2": lambda b=bank, q=query: b.read(q),
                },
                args.rounds,
            )
        what = f"memory read at {args.memory} frames, {count} objects, published / vss2"
        results.append(result(what, times, "published", "vss2", "at least 2"))
    finish(results, args.json)


if __name__ == "__main__":
    main()
