"""The yardsticks of multi-scale deformable attention compute what the op computes."""

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
from msda_backends import HERE, Backend, close, make_inputs, skip_without_emulator

from vss2.layers.extension import built_library

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("published_ms_deform_attn")


def test_plain_pytorch(published: ModuleType) -> None:
    inputs = make_inputs("yardstick", [[3, 5], [2, 2]])
    output = published.reference(inputs.value, inputs.shapes, inputs.locations, inputs.weights)
    close(output, Backend("torch")(inputs)["output"], 1e-12)


def test_cuda_kernels_emulated(published: ModuleType, tmp_path: Path) -> None:
    skip_without_emulator()
    command = ["g++", "-std=c++17", "-w", "-shared", "-fPIC", "-include", HERE / "cuda_on_cpu.h"]
    command += ["-x", "c++", *published.SOURCES, "-o", tmp_path / "kernels.so"]
    subprocess.run([str(part) for part in command], check=True)
    kernels = ctypes.CDLL(str(tmp_path / "kernels.so"))
    inputs = make_inputs("yardstick", [[3, 5], [2, 2]], queries=3).to(torch.float32)
    given = [x.contiguous() for x in inputs[:5]]
    names = ("output", "grad_value", "grad_sampling_locations", "grad_attention_weights")
    results = [
        published.cuda_forward(kernels, *given, 0),
        *published.cuda_backward(kernels, inputs.grad, *given, 0),
    ]
    expected = Backend("torch")(inputs)
    for name, result in zip(names, results, strict=True):
        close(result, expected[name], 1e-5)


def test_cuda_source_compiles(published: ModuleType, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    file = built_library(published.NAME, published.SOURCES, (9, 0), folder=tmp_path)
    assert b"published_backward" in file.read_bytes()


def test_the_benchmark_on_a_small_frame(
    published: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = importlib.import_module("ms_deform_attn")
    monkeypatch.setattr(benchmark, "SHAPES", ((2, 3), (4, 6)))
    monkeypatch.setenv("VSS2_MSDEFORM", "torch")
    monkeypatch.setattr(benchmark, "set_threads", lambda threads: None)
    rows = benchmark.on_cpu(rounds=1)
    assert sum(row.startswith("| forward") for row in rows) in (4 + 4, 8 + 6)
