"""How a session computes: prepared weights, memory in work, mixed precision, the yardstick."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from stcn_cases import build, clip, run, small
from torch.utils._python_dispatch import TorchDispatchMode

from vss2.layers.winograd import WinogradConv2d
from vss2.modeling import memory_bank
from vss2.modeling.memory_bank import MemoryBank, MemoryEntry

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def mask_of(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[height // 4 : height // 2, : width // 2] = 1
    mask[height // 2 :, width // 2 :] = 2
    return mask


def test_prepared_weights_serve_until_the_model_changes() -> None:
    model = small()
    prepared = model.for_inference()
    assert model.for_inference() is prepared
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in prepared.modules())
    names = {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        model.key_proj.key_proj.bias.add_(1)
    changed = model.for_inference()
    assert changed is not prepared
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(changed.encode(image)["key"], model.encode(image)["key"], atol=1e-4)
    model.train()
    assert {name for name, _ in model.named_parameters()} == names
    assert model.eval().for_inference() is not changed


def test_wide_convolutions_are_the_cheaper_ones_except_where_keys_come_from() -> None:
    with torch.device("meta"):
        model = build().eval()
    model.to_empty(device="cpu")
    cheap = {
        name.split(".")[0]
        for name, module in model.for_inference().named_modules()
        if isinstance(module, WinogradConv2d)
    }
    assert cheap == {"key_comp", "value_encoder", "decoder"}
    plain = model.for_inference(amp=True)
    assert not any(isinstance(module, WinogradConv2d) for module in plain.modules())


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aliases = any(r.alias_info is not None for r in func._schema.returns)
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and not aliases:
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("sigma", [None, 2.0])
def test_what_a_read_works_with_does_not_grow_with_the_memory(
    sigma: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(memory_bank.SIMILARITIES, "cpu", 3000)
    largest = {}
    for frames in (4, 40):
        bank = MemoryBank(5, sigma, None)
        for _ in range(frames):
            bank.append(MemoryEntry(torch.randn(48, 8), torch.randn(1, 48, 16)))
        with LargestTensor() as seen:
            bank.read(torch.randn(1, 8, 6, 8))
        largest[frames] = seen.elements
    # A dense affinity of 40 frames has 48 * 48 * 40 = 92160 elements.
    assert largest[40] <= 3000
    assert largest[4] <= 3000


@pytest.mark.parametrize("include_last", [False, True])
def test_mixed_precision_gives_about_the_same_masks(include_last: bool) -> None:
    model = small()
    frames = clip(5, 44, 60, seed=5)
    given = {0: mask_of(44, 60)}
    exact = run(model.new_session(mem_every=2, include_last=include_last), frames, given)
    rough = run(model.new_session(mem_every=2, include_last=include_last, amp=True), frames, given)
    assert rough[-1]["prob"].dtype == torch.float32
    assert (rough[-1]["prob"] - exact[-1]["prob"]).abs().mean() < 0.02


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_the_yardstick_computes_the_same(load: Any) -> None:
    yardstick = load("stcn_session")
    model = yardstick.build(18, value_dim=32)
    for count in (1, 2, 3):
        frames = yardstick.clip(8, 64, 96)
        mask = yardstick.first_mask(count, 64, 96)
        assert sorted(mask.unique().tolist()) == list(range(count + 1))
        assert "0.00% of all" in yardstick.check(model, frames, mask)
        prob = yardstick.ours(model, frames, mask)
        assert (prob - yardstick.published(model, frames, mask)).abs().max() < 1e-4
        assert prob[1:, -1].std() > 1e-4  # something to compare
    bank, core, query = yardstick.filled(model, 5, 2, (4, 5))
    assert (bank.read(query) - core.read(query)).abs().max() < 1e-4
    going = yardstick.Continued(model, 5, 2, (40, 56))
    height, width = going.frame.shape[-2:]
    assert going.published().shape == (3, 48, 64)
    assert going.ours().shape == (3, height, width)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", [False, True])
def test_a_gpu_gives_the_same_masks(amp: bool) -> None:
    model = small()
    frames, given = clip(6, 44, 60, seed=5), {0: mask_of(44, 60)}
    expected = run(model.new_session(mem_every=2), frames, given)
    torch.backends.cudnn.allow_tf32 = False
    ours = run(model.cuda().new_session(mem_every=2, amp=amp), frames.cuda(), given)
    for a, b in zip(expected, ours, strict=True):
        assert (a["prob"] - b["prob"].cpu()).abs().max() < (0.1 if amp else 1e-3)
