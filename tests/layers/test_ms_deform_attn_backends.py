"""Each backend against the recorded numbers of the published path, and against each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from msda_backends import (
    HERE,
    Backend,
    Inputs,
    close,
    emulated_cuda,
    every_backend,
    make_inputs,
    rnd,
    starts_of,
    uni,
)

from vss2.layers.extension import built_library
from vss2.layers.ms_deform_attn import MSDeformAttn, cuda_backend, torch_backend
from vss2.testing.fixtures import filled_state_dict, load_fixture

DESCRIPTION, ARRAYS = load_fixture("msdeformattn")
CASES = DESCRIPTION["config"]
OP_CASES = [name for name, case in CASES.items() if not case.get("module")]
MODULE_CASES = [name for name, case in CASES.items() if case.get("module")]
SMALL = [[5, 3], [1, 1], [4, 6]]


def recorded_inputs(name: str) -> Inputs:
    case = CASES[name]
    return make_inputs(
        name,
        case["spatial_shapes_hw"],
        batch=case["N"],
        heads=case["heads"],
        channels=case["head_dim"],
        queries=case["queries"],
        points=case["points"],
        low=case["loc_low"],
        high=case["loc_high"],
        normalised=case["weights_normalised"],
    )


@every_backend
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", OP_CASES)
def test_recorded_numbers(
    name: str, dtype: torch.dtype, tolerance: float, backend: Backend
) -> None:
    backend.skip_if_missing()
    for key, result in backend(recorded_inputs(name).to(dtype)).items():
        close(result, torch.from_numpy(ARRAYS[f"{name}/{key}"]), tolerance)


@pytest.mark.parametrize("forced", ["torch", "cpu"])
@pytest.mark.parametrize("name", MODULE_CASES)
def test_recorded_modules(name: str, forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Backend(forced).skip_if_missing()
    monkeypatch.setenv("VSS2_MSDEFORM", forced)
    case, layout = CASES[name], DESCRIPTION["layout"]["per_module_case"][name]
    module = MSDeformAttn(case["d_model"], case["levels"], case["heads"], case["points"])
    assert {key: list(x.shape) for key, x in module.state_dict().items()} == layout
    module.load_state_dict(filled_state_dict(layout))
    module.double()
    shapes = case["spatial_shapes_hw"]
    batch, queries, width = case["N"], case["queries"], case["d_model"]
    tokens = sum(height * width for height, width in shapes)
    reference = uni(
        f"{name}.reference_points", (batch, queries, case["levels"], case["reference_dim"])
    )
    mask = uni(f"{name}.padding_mask", (batch, tokens)) < 0.2 if case["padding_mask"] else None
    output = module(
        rnd(f"{name}.query", (batch, queries, width)),
        reference,
        rnd(f"{name}.input_flatten", (batch, tokens, width)),
        torch.tensor(shapes),
        starts_of(shapes),
        mask,
    )
    close(output, torch.from_numpy(ARRAYS[f"{name}/output"]), 1e-12)


@every_backend
@pytest.mark.parametrize(
    "sizes",
    [
        {"shapes": SMALL, "batch": 3, "heads": 3, "channels": 71, "queries": 7, "points": 2},
        {"shapes": SMALL, "channels": 32, "heads": 8, "points": 4, "queries": 9},
        {"shapes": SMALL, "channels": 16, "points": 5, "queries": 11},
        {"shapes": SMALL, "channels": 64, "points": 23, "queries": 3},
        {"shapes": [[1, 1]], "channels": 4, "points": 1, "queries": 1, "batch": 1, "heads": 1},
        {"shapes": [[3, 7]], "channels": 200, "points": 1, "queries": 2, "normalised": False},
    ],
    ids=["odd", "usual", "more points than lanes", "wide", "one", "wider"],
)
def test_backends_agree(sizes: dict, backend: Backend) -> None:
    backend.skip_if_missing()
    inputs = make_inputs("agree", **sizes)
    expected = Backend("torch")(inputs)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for key, result in backend(inputs.to(dtype)).items():
            assert result.dtype == dtype
            close(result, expected[key], tolerance)


@every_backend
def test_tensors_that_are_not_contiguous(backend: Backend) -> None:
    backend.skip_if_missing()
    inputs = make_inputs("strided", SMALL, queries=4)
    expected = backend(inputs)
    value = inputs.value.transpose(1, 2).contiguous().transpose(1, 2)
    odd = inputs._replace(
        value=torch.cat([value.new_zeros(1, *value.shape[1:]), value])[1:],
        locations=inputs.locations.flip(-1).flip(-1).transpose(0, 1).contiguous().transpose(0, 1),
        weights=inputs.weights.mT.contiguous().mT,
        grad=inputs.grad.mT.contiguous().mT,
    )
    strided = odd._replace(value=value)
    assert not any(x.is_contiguous() for x in (strided.value, odd.weights, odd.grad))
    for each in (odd, strided):
        for key, result in backend(each).items():
            close(result, expected[key], 1e-14)


@every_backend
def test_a_value_that_starts_at_an_odd_address(backend: Backend) -> None:
    backend.skip_if_missing()
    inputs = make_inputs("address", SMALL).to(torch.float32)
    storage = torch.cat([torch.zeros(1), inputs.value.flatten()])
    shifted = inputs._replace(value=storage[1:].view(inputs.value.shape))
    for key, result in backend(shifted).items():
        close(result, backend(inputs)[key], 1e-6)


@every_backend
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e18])
def test_locations_far_outside_count_as_nothing(bad: float, backend: Backend) -> None:
    backend.skip_if_missing()
    inputs = make_inputs("bad", SMALL).to(torch.float32)
    locations, weights = inputs.locations.clone(), inputs.weights.clone()
    hit = torch.zeros(weights.shape, dtype=torch.bool)
    hit[0, 1, 0] = hit[1, 3, 1, 2, 1] = True
    locations[..., 0][hit] = bad
    weights[hit] = 0.0
    expected = backend(inputs._replace(weights=weights))
    actual = backend(inputs._replace(locations=locations))
    for key in ("output", "grad_value"):
        close(actual[key], expected[key], 1e-6)
    assert (actual["output"][0, 1, :8] == 0).all()
    assert (actual["grad_sampling_locations"][hit] == 0).all()
    assert (actual["grad_attention_weights"][hit] == 0).all()
    for key in ("grad_sampling_locations", "grad_attention_weights"):
        close(actual[key][~hit], expected[key][~hit], 1e-6)


@every_backend
@pytest.mark.parametrize("channels", [16, 64])
def test_half_precision_adds_one_rounding(channels: int, backend: Backend) -> None:
    backend.skip_if_missing()
    inputs = make_inputs("half", SMALL, channels=channels).to(torch.float32)
    inputs = inputs._replace(value=(inputs.value * 300).clamp(-1e3, 1e3))
    for dtype, epsilon in ((torch.bfloat16, 2**-8), (torch.float16, 2**-11)):
        if backend.name == "emulated" and dtype == torch.float16:
            continue  # the emulator has no such type
        halved = inputs._replace(value=inputs.value.to(dtype), grad=inputs.grad.to(dtype))
        exact = backend(halved._replace(value=halved.value.float(), grad=halved.grad.float()))
        actual = backend(halved)
        assert actual["output"].dtype == actual["grad_value"].dtype == dtype
        assert actual["grad_sampling_locations"].dtype == torch.float32
        for key, result in actual.items():
            close(result, exact[key], epsilon * 1.01)


@pytest.mark.parametrize("channels", [8, 32, 71])
def test_the_sum_without_atomics_is_the_same(channels: int) -> None:
    inputs = make_inputs("sorted", SMALL, channels=channels, heads=3, queries=6)
    expected = Backend("torch")(inputs)
    torch.use_deterministic_algorithms(True)
    try:
        actual = Backend("emulated")(inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    for key, result in actual.items():
        close(result, expected[key], 1e-12)


@pytest.mark.gpu
def test_the_sum_without_atomics_repeats_its_bits() -> None:
    backend = Backend("cuda", "cuda")
    backend.skip_if_missing()
    inputs = make_inputs("bits", [[2, 2], [9, 9]], queries=500, channels=32).to(torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (backend(inputs)["grad_value"] for _ in range(4))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first, other) for other in others)


def test_the_emulator_runs_the_cuda_backend_itself() -> None:
    inputs = make_inputs("itself", SMALL)
    with emulated_cuda():
        out = cuda_backend.forward(
            inputs.value, inputs.levels, inputs.locations, inputs.weights.neg()
        )
    close(out, -Backend("torch")(inputs)["output"], 1e-12)


def test_threads_do_not_change_the_bits() -> None:
    backend = Backend("cpu")
    backend.skip_if_missing()
    inputs = make_inputs("threads", SMALL, queries=300, channels=32).to(torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(backend(inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_plain_pytorch_keeps_one_level_of_samples() -> None:
    inputs = make_inputs("memory", [[3, 3]] * 4, queries=40, channels=16)
    largest = [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest[0] = max(largest[0], out.numel())
            return out

    with Watch():
        torch_backend.forward(inputs.value, inputs.levels, inputs.locations, inputs.weights)
    one_level = inputs.grad.numel() * inputs.weights.shape[-1]
    assert largest[0] == one_level


def test_cuda_source_compiles(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")

    def build(arch: tuple[int, int]) -> Path:
        return built_library(f"sm_{arch[0]}{arch[1]}", cuda_backend.SOURCES, arch, tmp_path)

    with ThreadPoolExecutor() as pool:
        files = list(pool.map(build, [(8, 0), (9, 0)]))
    assert all(b"vss2_msda_cuda_backward" in file.read_bytes() for file in files)


def triton_on_cpu(*arguments: str, interpret: bool) -> dict:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, HERE / "triton_on_cpu.py", *arguments],
        env=os.environ | {"TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_triton_kernels_interpreted() -> None:
    errors = triton_on_cpu("interpret", interpret=True)
    assert len(errors) == 8
    for name, error in errors.items():
        assert error <= (1e-12 if "float64" in name else 1e-5), f"{name}: {error}"


def test_triton_kernels_compile() -> None:
    pytest.importorskip("triton", minversion="3.3")  # compiling by hand was another call before
    code = triton_on_cpu("compile", interpret=False)
    assert "red.global.gpu" in code["backward_kernel"] or "atom.global" in code["backward_kernel"]
    assert ".target sm_90" in code["forward_kernel"]
