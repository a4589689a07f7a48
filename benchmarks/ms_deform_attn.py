"""Multi-scale deformable attention at Mask2Former's sizes: vss2's backends and the published ways.

    python benchmarks/ms_deform_attn.py                  # on the CPU, with 1 and 2 threads
    python benchmarks/ms_deform_attn.py --device cuda    # on a GPU

A 480x864 frame: 8505 tokens of levels 15x27, 30x54 and 60x108, as many queries, 8 heads of 32
channels, 4 points per level. Queries sample around their own position, with offsets of a few
pixels. Before anything is timed, all ways have to agree. Prints Markdown.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import published_ms_deform_attn as published
import torch
from interleaved import compare, interleave, machine, parser, set_threads
from torch.profiler import ProfilerActivity, profile

from vss2.layers.ms_deform_attn import backend_name, choice, ms_deform_attn

SHAPES = ((15, 27), (30, 54), (60, 108))
HEADS, CHANNELS, POINTS = 8, 32, 4
WANTED = {"cpu": (3.0, 4.0), "torch": (1.3, 1.3)}
GPU_REPEATS = 20

Ways = dict[str, Callable[[], list[torch.Tensor]]]


def make_inputs(device: str) -> dict[str, torch.Tensor]:
    """Arguments of the op, and `grad`, the gradient of its output."""
    generator = torch.Generator().manual_seed(0)
    centers = []
    for height, width in SHAPES:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers.append(torch.stack([(x + 0.5) / width, (y + 0.5) / height], dim=-1).flatten(0, 1))
    reference = torch.cat(centers)
    shapes = torch.tensor(SHAPES)
    tokens = len(reference)
    grid = (1, tokens, HEADS, len(SHAPES), POINTS)
    sizes = shapes.flip(-1)[:, None]
    pixels = reference[None, :, None, None, None] * sizes - 0.5
    pixels = pixels + 3 * torch.randn(*grid, 2, generator=generator)
    # The gradient of a location jumps between pixels; there, ways may differ by a rounding.
    pixels = pixels.floor() + pixels.frac().abs().clamp(0.01, 0.99)
    weights = torch.randn(1, tokens, HEADS, len(SHAPES) * POINTS, generator=generator)
    inputs = {
        "value": torch.randn(1, tokens, HEADS, CHANNELS, generator=generator),
        "locations": (pixels + 0.5) / sizes,
        "weights": weights.softmax(-1).view(grid),
        "grad": torch.randn(1, tokens, HEADS * CHANNELS, generator=generator),
    }
    areas = shapes.prod(-1)
    return {name: x.to(device) for name, x in inputs.items()} | {
        "shapes": shapes,
        "starts": areas.cumsum(0) - areas,
    }


def with_gradients(
    function: Callable[..., torch.Tensor], inputs: dict[str, torch.Tensor], backward: bool
) -> list[torch.Tensor]:
    """Output and, if `backward`, the gradients of value, locations and weights."""
    given = [inputs[name].detach() for name in ("value", "locations", "weights")]
    if not backward:
        return [function(*given)]
    for x in given:
        x.requires_grad_()
    output = function(*given)
    return [output.detach(), *torch.autograd.grad(output, given, inputs["grad"])]


def make_ways(inputs: dict[str, torch.Tensor], names: list[str], backward: bool) -> Ways:
    """The published way in plain PyTorch, and vss2's backends of these names."""
    shapes, starts = inputs["shapes"], inputs["starts"]

    def ours(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor):
        return ms_deform_attn(value, shapes, starts, locations, weights)

    def reference(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor):
        return published.reference(value, shapes, locations, weights)

    def forced(name: str) -> Callable[[], list[torch.Tensor]]:
        def way() -> list[torch.Tensor]:
            os.environ["VSS2_MSDEFORM"] = name
            return with_gradients(ours, inputs, backward)

        return way

    plain = {"published": lambda: with_gradients(reference, inputs, backward)}
    return plain | {name: forced(name) for name in names}


def check(ways: Ways, tolerance: float) -> None:
    """Every way gives the numbers of the first one."""
    expected, *others = (way() for way in ways.values())
    for name, results in zip(list(ways)[1:], others, strict=True):
        for actual, wanted in zip(results, expected, strict=True):
            error = ((actual - wanted).abs().max() / wanted.abs().max()).item()
            assert error < tolerance, f"{name} is off by {error:.2g}"


def peak_megabytes(way: Callable[[], object]) -> float:
    """Most memory of tensors that are made and kept while `way` runs, in MB of 10^6 bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        result = way()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del result
    return peak / 1e6


def on_cpu(rounds: int) -> list[str]:
    inputs = make_inputs("cpu")
    names = [
        name
        for name in ("cpu", "torch")
        if choice.BACKENDS[name].missing(torch.device("cpu"), torch.float32) is None
    ]
    rows = [
        "| pass | threads | way | published / way | p10 to p90 | median ms | wanted |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    memory = ["| pass | way | peak MB |", "|---|---|---:|"]
    for backward in (False, True):
        label = "forward + backward" if backward else "forward"
        ways = make_ways(inputs, names, backward)
        check(ways, 2e-5)
        for threads in (1, 2):
            set_threads(threads)
            times = interleave(ways, rounds)
            for name in names:
                ratio = compare(times, "published", name)
                median = sorted(times[name])[rounds // 2] * 1e3
                rows.append(
                    f"| {label} | {threads} | {name} | {ratio['ratio']:.2f} | "
                    f"{ratio['p10']:.2f} to {ratio['p90']:.2f} | {median:.1f} | "
                    f"{WANTED[name][backward]:.1f} |"
                )
        memory += [f"| {label} | {n} | {peak_megabytes(way):.1f} |" for n, way in ways.items()]
    return [*rows, "", *memory]


def cuda_yardstick(inputs: dict[str, torch.Tensor], backward: bool) -> Callable[[], list]:
    """The published structure in CUDA, float32; its level tables lie on the GPU."""
    kernels = published.library(inputs["value"].device)
    stream = torch.cuda.current_stream().cuda_stream
    tables = (inputs["shapes"].cuda(), inputs["starts"].cuda())
    given = (inputs["value"], *tables, inputs["locations"], inputs["weights"])

    def way() -> list[torch.Tensor]:
        results = [published.cuda_forward(kernels, *given, stream)]
        if backward:
            results += published.cuda_backward(kernels, inputs["grad"], *given, stream)
        return results

    return way


def repeated(way: Callable[[], list]) -> Callable[[], None]:
    """Several calls in a row, and the wait for them: a GPU works behind the caller's back."""

    def run() -> None:
        for _ in range(GPU_REPEATS):
            way()
        torch.cuda.synchronize()

    return run


def bytes_per_second() -> float:
    """Of copying on the GPU, reads and writes both counted: the roofline."""
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = interleave({"copy": repeated(lambda: [target.copy_(source)])}, 9)["copy"]
    return 2 * source.numel() * GPU_REPEATS / sorted(times)[4]


def least_bytes(inputs: dict[str, torch.Tensor], backward: bool) -> int:
    """What has to be read and written if every number moves once."""
    sizes = {k: inputs[k].nbytes for k in ("value", "locations", "weights", "grad")}
    forward = sum(sizes.values())  # the output is as large as its gradient
    return forward + (2 * sum(sizes.values()) - sizes["grad"] if backward else 0)


def on_gpu(rounds: int) -> list[str]:
    single = make_inputs("cuda")
    device = single["value"].device
    roofline = bytes_per_second()
    rows = [
        "| pass | dtype | way | ms | plain PyTorch / way | CUDA yardstick / way | roofline |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        inputs = single | {name: single[name].to(dtype) for name in ("value", "grad")}
        names = [n for n, b in choice.BACKENDS.items() if b.missing(device, dtype) is None]
        for backward in (False, True):
            ways = make_ways(inputs, names, backward)
            check(ways, 2e-5 if dtype == torch.float32 else 2e-2)
            ways["yardstick"] = cuda_yardstick(single, backward)
            times = interleave({n: repeated(way) for n, way in ways.items()}, rounds)
            for name in ways:
                seconds = sorted(times[name])[rounds // 2] / GPU_REPEATS
                share = least_bytes(inputs, backward) / roofline / seconds
                rows.append(
                    f"| {'forward + backward' if backward else 'forward'} | {dtype} | {name} | "
                    f"{seconds * 1e3:.3f} | {compare(times, 'published', name)['ratio']:.2f} | "
                    f"{compare(times, 'yardstick', name)['ratio']:.2f} | {share:.1%} |"
                )
    return [f"{torch.cuda.get_device_name()}, copies at {roofline / 1e12:.2f} TB/s", "", *rows]


def main() -> None:
    options = parser(__doc__.splitlines()[0], rounds=11)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = options.parse_args()
    print(f"{machine()}; default backend: {backend_name(args.device)}\n")
    print("\n".join(on_cpu(args.rounds) if args.device == "cpu" else on_gpu(args.rounds)))


if __name__ == "__main__":
    main()
