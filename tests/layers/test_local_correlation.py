"""The best matches within a radius: every backend against the whole affinity."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vss2.errors import InputError
from vss2.layers.local_correlation import (
    Correlation,
    cpu_backend,
    local_correlation,
    op,
    pack_rows,
    read_labels,
)
from vss2.layers.local_correlation.packing import packed

HERE = Path(__file__).parent
RADII = (None, 4.0, 2.5)
REPEATS = (1, 3, 1)
needs_cpp = pytest.mark.skipif(
    cpu_backend.missing(torch.device("cpu")) is not None, reason="no C++ compiler"
)
BACKENDS = [pytest.param("cpp", marks=needs_cpp), "torch"]


def whole_affinity(
    query: torch.Tensor, keys: list[torch.Tensor], top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and places of the best keys, from all products of all pairs."""
    height, width = query.shape[1:]
    y, x = torch.arange(height * width) // width, torch.arange(height * width) % width
    distance = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2).float().sqrt()
    columns = []
    for key, radius, repeat in zip(keys, RADII, REPEATS, strict=True):
        products = query.flatten(1).t() @ key.flatten(1)
        if radius is not None:
            products = products.masked_fill(distance >= radius, -torch.inf)
        columns += [products] * repeat
    found = torch.cat(columns, 1).sort(dim=1, descending=True, stable=True)
    return found.values[:, :top_k], found.indices[:, :top_k]


def maps(channels: int, height: int, width: int) -> list[torch.Tensor]:
    torch.manual_seed(channels)
    return list(torch.randn(4, channels, height, width))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("channels", "height", "width", "top_k"),
    [(16, 12, 17, 5), (8, 5, 3, 4), (7, 1, 40, 3), (3, 9, 1, 2), (5, 20, 50, 15)],
)
def test_equals_the_whole_affinity(
    backend: str, channels: int, height: int, width: int, top_k: int
) -> None:
    query, *keys = maps(channels, height, width)
    values, places = whole_affinity(query, keys, top_k)
    found = local_correlation(query, keys, RADII, top_k, REPEATS, backend=backend)
    torch.testing.assert_close(found.values, values, atol=1e-5, rtol=0)
    assert torch.equal(found.keys, places)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_keys_than_asked_for(backend: str) -> None:
    query, key, *_ = maps(4, 3, 3)
    found = local_correlation(query, [key], [1.0], 4, backend=backend)
    assert torch.equal(found.keys[:, 0], torch.arange(9))  # a radius of 1 is the cell itself
    torch.testing.assert_close(found.values[:, 0], (query * key).sum(0).flatten())
    assert (found.values[:, 1:] == -torch.inf).all()
    assert (found.keys[:, 1:] == 0).all()
    labels = read_labels(found, [torch.arange(9.0).reshape(1, 3, 3)], 0.1)
    assert torch.equal(labels.flatten(), torch.arange(9.0))


@needs_cpp
def test_of_equal_products_the_lower_place_comes_first() -> None:
    query = torch.ones(2, 4, 6)
    found = local_correlation(query, [query, query], [2.0, None], 3, [2, 1], backend="cpp")
    assert found.keys[0].tolist() == [0, 1, 6]
    assert found.keys[23].tolist() == [16, 17, 22]


@needs_cpp
def test_threads_and_layout_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    query, *keys = maps(6, 11, 19)
    once = local_correlation(query, keys, RADII, 5, REPEATS, backend="cpp")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    stored = [pack_rows(key) for key in keys]
    again = local_correlation(pack_rows(query), stored, RADII, 5, REPEATS, backend="cpp")
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_packed_maps_are_not_copied() -> None:
    features = torch.randn(3, 4, 18)
    stored = pack_rows(features)
    assert torch.equal(stored, features)
    assert packed(stored) is stored
    assert packed(features) is not features
    assert torch.equal(packed(features[:, 1:, 2:]), features[:, 1:, 2:])


def test_labels_are_weighted_by_a_softmax() -> None:
    torch.manual_seed(0)
    labels = [torch.rand(2, 3, 4) for _ in range(2)]
    found = Correlation(torch.randn(12, 3), torch.randint(24, (12, 3)))
    table = torch.cat([label.flatten(1) for label in labels], 1)
    weights = (found.values / 0.5).softmax(1)
    expected = (table[:, found.keys] * weights).sum(2).reshape(2, 3, 4)
    torch.testing.assert_close(read_labels(found, labels, 0.5), expected)


def test_without_a_compiler_pytorch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backend, "missing", lambda device: "there is no C++ compiler")
    query, *keys = maps(4, 4, 5)
    found = local_correlation(query, keys, RADII, 2, REPEATS)
    assert torch.equal(found.keys, whole_affinity(query, keys, 2)[1])
    with pytest.raises(InputError, match="'cpp' of local_correlation cannot serve"):
        local_correlation(query, keys, RADII, 2, REPEATS, backend="cpp")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keys": []}, "there must be one"),
        ({"keys": [torch.zeros(2, 3, 5)]}, "maps like the query"),
        ({"keys": [torch.zeros(2, 3, 4).double()]}, "float64"),
        ({"query": torch.zeros(2, 3, 4, dtype=torch.half)}, "float16"),
        ({"radii": [1.0, 2.0]}, "2 radii"),
        ({"radii": [0.0]}, "above 0"),
        ({"top_k": 0}, "top_k=0"),
        ({"repeats": [0]}, "at least 1"),
        ({"backend": "fpga"}, "one of triton, cpp, torch"),
        ({"backend": "triton"}, "for CUDA, the maps are on cpu"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict, words: str) -> None:
    arguments = {
        "query": torch.zeros(2, 3, 4),
        "keys": [torch.zeros(2, 3, 4)],
        "radii": [2.0],
        "top_k": 2,
    }
    with pytest.raises(InputError, match=words):
        local_correlation(**(arguments | change))


def run_on_triton(command: str, **environment: str) -> str:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(HERE / "local_correlation_on_triton.py"), command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.soak
def test_the_triton_kernel_by_its_interpreter() -> None:
    found = json.loads(run_on_triton("interpret", TRITON_INTERPRET="1"))
    assert found["values"] < 1e-5
    assert found["places"] == 0


@pytest.mark.soak
def test_the_triton_kernel_compiles_for_a_gpu() -> None:
    assert ".target sm_90" in run_on_triton("compile")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_as_on_the_cpu() -> None:
    query, *keys = (x.cuda() for x in maps(70, 12, 17))
    found = local_correlation(query, keys, RADII, 5, REPEATS)
    values, places = whole_affinity(query.cpu(), [key.cpu() for key in keys], 5)
    torch.testing.assert_close(found.values.cpu(), values, atol=1e-4, rtol=0)
    assert (found.keys.cpu() == places).float().mean() > 0.99


def test_backends_are_in_order_of_preference() -> None:
    assert list(op.BACKENDS)[-1] == "torch"
    assert op.BACKENDS["torch"].missing(torch.device("meta")) is None
