"""Every backend of multi-scale deformable attention that this machine can run, and its inputs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from vss2.layers.ms_deform_attn import cpu_backend, cuda_backend, torch_backend, triton_backend
from vss2.layers.ms_deform_attn.problem import Levels

HERE = Path(__file__).parent


class Inputs(NamedTuple):
    """Arguments of the op, and a gradient of its output."""

    value: torch.Tensor
    shapes: torch.Tensor
    starts: torch.Tensor
    locations: torch.Tensor
    weights: torch.Tensor
    grad: torch.Tensor

    @property
    def levels(self) -> Levels:
        shapes = tuple((height, width) for height, width in self.shapes.tolist())
        return Levels(shapes, tuple(self.starts.tolist()))

    def to(self, *target: torch.dtype | str) -> Inputs:
        floats = [x.to(*target) for x in (self.value, self.locations, self.weights, self.grad)]
        return Inputs(floats[0], self.shapes, self.starts, *floats[1:])


def rnd(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The fixture's normal numbers for `name`."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape))


def uni(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The fixture's uniform numbers for `name`."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape))


def starts_of(shapes: list[list[int]]) -> torch.Tensor:
    sizes = torch.tensor([height * width for height, width in shapes])
    return sizes.cumsum(0) - sizes


def make_inputs(
    name: str,
    shapes: list[list[int]],
    batch: int = 2,
    heads: int = 2,
    channels: int = 8,
    queries: int = 5,
    points: int = 3,
    low: float = -0.3,
    high: float = 1.3,
    normalised: bool = True,
) -> Inputs:
    """Inputs by the fixture's rule, float64."""
    tokens = sum(height * width for height, width in shapes)
    points_shape = (batch, queries, heads, len(shapes), points)
    locations = low + (high - low) * uni(f"{name}.sampling_locations", (*points_shape, 2))
    weights = uni(f"{name}.attention_weights", points_shape) + 1e-5
    if normalised:
        weights = weights / weights.sum((3, 4), keepdim=True)
    return Inputs(
        rnd(f"{name}.value", (batch, tokens, heads, channels)),
        torch.tensor(shapes),
        starts_of(shapes),
        locations,
        weights,
        rnd(f"{name}.grad_output", (batch, queries, heads * channels)),
    )


def skip_without_emulator() -> None:
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("the emulator needs Linux and g++")


@functools.cache
def emulated_library() -> ctypes.CDLL:
    """The CUDA kernels, run lane by lane on the CPU."""
    folder = Path(tempfile.mkdtemp())
    command = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-include", HERE / "cuda_on_cpu.h"]
    command += ["-x", "c++", *cuda_backend.SOURCES, "-o", folder / "kernels.so"]
    subprocess.run(["g++", *map(str, command)], check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


@contextlib.contextmanager
def emulated_cuda() -> Iterator[None]:
    """Inside, the CUDA backend takes tensors on the CPU."""
    skip_without_emulator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_backend, "_library", lambda device: emulated_library())
        patch.setattr(cuda_backend, "_stream", lambda device: contextlib.nullcontext(0))
        yield


class Backend(NamedTuple):
    """A way to compute output and gradients of `Inputs`."""

    name: str
    device: str = "cpu"

    def __call__(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        inputs = inputs.to(self.device)
        levels, given = inputs.levels, (inputs.locations, inputs.weights)
        with emulated_cuda() if self.name == "emulated" else contextlib.nullcontext():
            output = MODULES[self.name].forward(inputs.value, levels, *given)
            grads = MODULES[self.name].backward(inputs.grad, inputs.value, levels, *given)
        names = ("grad_value", "grad_sampling_locations", "grad_attention_weights")
        results = {"output": output, **dict(zip(names, grads, strict=True))}
        return {name: result.cpu() for name, result in results.items()}

    def skip_if_missing(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            pytest.skip("there is no GPU")
        if self.name != "emulated":
            reason = MODULES[self.name].missing(torch.device(self.device), torch.float32)
            if reason is not None:
                pytest.skip(reason)


MODULES = {
    "torch": torch_backend,
    "cpu": cpu_backend,
    "emulated": cuda_backend,
    "cuda": cuda_backend,
    "triton": triton_backend,
}
ON_CPU = [Backend("torch"), Backend("cpu"), Backend("emulated")]
ON_GPU = [Backend(name, "cuda") for name in ("torch", "cuda", "triton")]
every_backend = pytest.mark.parametrize(
    "backend",
    [*ON_CPU, *(pytest.param(each, marks=pytest.mark.gpu) for each in ON_GPU)],
    ids=lambda each: f"{each.name}-{each.device}",
)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """`tolerance` is relative to the largest expected number."""
    assert actual.shape == expected.shape
    limit = tolerance * expected.abs().max().clamp(min=1e-6).item()
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= limit, f"largest difference {error:.3g}, allowed {limit:.3g}"
