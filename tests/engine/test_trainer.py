"""One iteration: precision, accumulation, clipping, and losses that are not finite."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from typing import Any

import pytest
import torch
from torch import nn

from vss2.d2.engine import hooks
from vss2.engine.nonfinite import NonFiniteGuard, NonFiniteLossError
from vss2.engine.parallel import ListUnused
from vss2.engine.trainer import VideoTrainer


class Net(nn.Module):
    """Losses of a small network; a sample with "bad" makes one of them NaN."""

    def __init__(self, norm: bool = False):
        super().__init__()
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(6, 1)
        self.seen: list[torch.dtype] = []

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        x = torch.stack([sample["x"] for sample in batch])
        out = self.last(self.first(self.norm(x)).tanh())
        self.seen.append(out.dtype)
        bad = float("nan") if any(sample.get("bad") for sample in batch) else 1.0
        return {"loss_a": out.float().square().mean() * bad, "loss_b": out.float().abs().mean()}


def samples(count: int, bad: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(5))
    return [
        {"x": x[i], "video_id": f"v{i}", "frame_indices": [i, i + 3], "bad": i in bad}
        for i in range(count)
    ]


def batches(data: list[dict[str, Any]], size: int):
    ring = itertools.cycle(data)
    while True:
        yield [next(ring) for _ in range(size)]


def make(net: Net | None = None, size: int = 4, bad: tuple[int, ...] = (), lr: float = 0.1, **kw):
    torch.manual_seed(0)
    net = Net() if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    return VideoTrainer(net, batches(samples(24, bad), size), optimizer, **kw)


def caught(caplog) -> Any:
    logging.getLogger("vss2").propagate = True
    return caplog.at_level(logging.INFO, logger="vss2")


@pytest.mark.parametrize("k", [2, 3])
def test_accumulation_equals_one_larger_batch(k: int) -> None:
    small, large = make(size=4, grad_accum=k), make(size=4 * k)
    small.train(0, 4)
    large.train(0, 4)
    for a, b in zip(small.model.parameters(), large.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
    assert not torch.equal(small.model.first.weight, make().model.first.weight)
    for name in ("total_loss", "loss_a", "loss_b"):
        values = [t.storage.history(name).values() for t in (small, large)]
        assert len(values[0]) == len(values[1]) == 4
        assert [v for v, _ in values[0]] == pytest.approx([v for v, _ in values[1]], abs=1e-6)


def test_bf16_on_the_cpu_computes_in_bf16_and_keeps_float32_weights() -> None:
    trainer = make(amp="bf16")
    trainer.train(0, 3)
    assert set(trainer.model.seen) == {torch.bfloat16}
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in trainer.model.parameters())
    assert trainer.scaler is None
    assert "grad_scaler" not in trainer.state_dict()
    plain = make()
    plain.train(0, 3)
    difference = (plain.model.first.weight - trainer.model.first.weight).abs().max()
    assert 0 < difference < 0.02


def test_fp16_unscales_then_clips_then_steps_then_updates(monkeypatch) -> None:
    trainer = make(amp="fp16", clip_grad=(0.01, 2.0))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    calls = []

    def note(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    for name in ("unscale_", "step", "update"):
        note(trainer.scaler, name)
    note(nn.utils, "clip_grad_norm_")
    trainer.train(0, 1)
    assert calls == ["unscale_", "clip_grad_norm_", "step", "update"]
    reference = make(clip_grad=(0.01, 2.0))
    reference.train(0, 1)
    # The norm is that of the unscaled gradient, whatever the scale.
    norms = [t.storage.latest()["grad_norm"][0] for t in (trainer, reference)]
    assert norms[0] == pytest.approx(norms[1], rel=0.02)
    assert trainer.storage.latest()["loss_scale"][0] == 128


def test_the_scale_is_saved_and_its_absence_is_a_warning(caplog) -> None:
    trainer = make(amp="fp16")
    trainer.train(0, 1)
    trainer.scaler.update(128.0)
    state = copy.deepcopy(trainer.state_dict())
    other = make(amp="fp16")
    other.load_state_dict(state)
    assert other.scaler.get_scale() == 128
    del state["grad_scaler"]
    with caught(caplog):
        make(amp="fp16").load_state_dict(state)
    assert "holds no scale" in caplog.text


def test_clipping_bounds_the_step_and_logs_the_norm_before_it() -> None:
    trainer = make(clip_grad=(0.05, 2.0), lr=1.0)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train(0, 1)
    pairs = zip(before, trainer.model.parameters(), strict=True)
    step = torch.cat([(a - b.detach()).flatten() for a, b in pairs]).norm().item()
    assert step == pytest.approx(0.05, rel=1e-3)
    assert trainer.storage.latest()["grad_norm"][0] > 0.1


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step() -> None:
    trainer = make(bad=(6,))
    trainer.register_hooks([hooks.IterationTimer()])
    message = (
        r"not finite at iteration 1: rank 0: loss_a=nan, loss_b=0\.\d+ on clips "
        r"\[v4 frames 4, 7; v5 frames 5, 8; v6 frames 6, 9; v7 frames 7, 10\]"
    )
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.train(0, 3)
    one = make()
    one.train(0, 1)
    for a, b in zip(trainer.model.parameters(), one.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_skipping_leaves_no_trace_of_the_step(caplog) -> None:
    def run(iterations: int, bad: tuple[int, ...]) -> VideoTrainer:
        torch.manual_seed(0)
        trainer = make(Net(norm=True), bad=bad, guard=NonFiniteGuard("skip", limit=3))
        with caught(caplog):
            trainer.train(0, iterations)
        return trainer

    good, skipped = run(1, ()), run(2, (5,))
    assert "Skipped; 1 in a row, 1 in all" in caplog.text
    for (name, a), b in zip(
        good.model.state_dict().items(), skipped.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert skipped.state_dict()["nonfinite"] == {"in_row": 1, "total": 1}
    assert skipped.storage.latest()["skipped_iterations"] == (1, 1)
    later = run(4, (5,))
    assert later.state_dict()["nonfinite"] == {"in_row": 0, "total": 1}
    assert math.isfinite(later.storage.latest()["total_loss"][0])


def test_skipping_gives_up_after_the_limit() -> None:
    trainer = make(bad=(4, 8), guard=NonFiniteGuard("skip", limit=2))
    with pytest.raises(
        NonFiniteLossError, match=r"2 iterations in a row .* train\.nonfinite_limit"
    ):
        trainer.train(0, 9)
    assert trainer.iter == 2


def test_a_gradient_that_is_not_finite_is_found_where_it_is_clipped() -> None:
    trainer = make(clip_grad=(1.0, 2.0))
    trainer.model.first.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFiniteLossError, match=r"\(gradient\) rank 0: .*norm of the gradient"):
        trainer.train(0, 1)


def test_losses_are_gathered_every_so_often_and_at_the_end() -> None:
    trainer = make(gather_metric_period=4)
    trainer.train(0, 10)
    assert [i for _, i in trainer.storage.history("total_loss").values()] == [3, 7, 9]
    assert "data_time" in trainer.storage.latest()


def test_parameters_without_gradient_are_named_once(caplog) -> None:
    trainer = make()
    trainer.model.spare = nn.Linear(2, 2)
    trainer.model.frozen = nn.Linear(2, 2).requires_grad_(False)
    trainer.register_hooks([ListUnused(trainer.model)])
    with caught(caplog):
        trainer.train(0, 3)
    assert caplog.text.count("2 parameters have no gradient") == 1
    assert "spare.weight, spare.bias" in caplog.text
    assert "frozen" not in caplog.text
