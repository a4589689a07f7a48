"""The embedding by composed weights against the published order of its steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vss2.modeling.segformer import SegFormerEmbedding, SegFormerHead

CHANNELS = (4, 6, 8, 10)
TOLERANCE = 1e-5  # of the largest value


def features(height: int = 13, width: int = 21, count: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"stage{i + 1}": torch.randn(
            count, channels, -(-height >> i) or 1, -(-width >> i) or 1, generator=generator
        )
        for i, channels in enumerate(CHANNELS)
    }


def embedding(norm: str = "BN", seed: int = 0) -> SegFormerEmbedding:
    torch.manual_seed(seed)
    module = SegFormerEmbedding(CHANNELS, 12, norm)
    if norm != "GN":
        bn = module.linear_fuse.bn
        nn.init.normal_(bn.running_mean)
        nn.init.uniform_(bn.running_var, 0.5, 2)
        nn.init.normal_(bn.weight)
        nn.init.normal_(bn.bias)
    return module.eval()


def plain(module: SegFormerEmbedding, maps: dict[str, torch.Tensor]) -> torch.Tensor:
    """All four stages at stride 4, then the wide convolution."""
    size = maps["stage1"].shape[-2:]
    projected = [
        nn.functional.interpolate(
            module.get_submodule(f"linear_c{stage}")(maps[f"stage{stage}"]),
            size=size,
            mode="bilinear",
        )
        for stage in (4, 3, 2, 1)
    ]
    return module.linear_fuse(torch.cat(projected, dim=1))


def assert_equal_to_plain(module: SegFormerEmbedding, maps: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        expected, actual = plain(module, maps), module.embed(maps)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    limit = TOLERANCE * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit)


def wide_maps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that pass the wide convolution from now on."""
    seen: list[tuple[int, ...]] = []
    call = nn.Conv2d.forward

    def forward(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return call(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    return seen


@pytest.mark.parametrize("size", [(13, 21), (8, 16), (1, 1), (9, 2)])
@pytest.mark.parametrize("count", [1, 3])
def test_both_orders_give_the_same_map(size: tuple[int, int], count: int) -> None:
    assert_equal_to_plain(embedding(), features(*size, count))


def test_the_wide_map_never_exists_in_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = wide_maps(monkeypatch)
    embedding().embed(features())
    assert seen == []


CHANGES: dict[str, Callable[[SegFormerEmbedding], object]] = {
    "load": lambda m: m.load_state_dict(embedding(seed=5).state_dict()),
    "load of a part": lambda m: m.linear_fuse.load_state_dict(
        embedding(seed=5).linear_fuse.state_dict()
    ),
    "in place": lambda m: m.linear_c2.proj.weight.data.mul_(3),
    "statistics": lambda m: m.linear_fuse.bn.running_mean.add_(1),
    "replaced": lambda m: setattr(m.linear_c1, "proj", nn.Linear(CHANNELS[0], 12)),
    "train and back": lambda m: m.train().eval(),
    "double": lambda m: m.double(),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_nothing_goes_stale(change: str) -> None:
    module, maps = embedding(), features()
    with torch.no_grad():
        before = module.embed(maps)
        CHANGES[change](module)
    dtype = module.linear_fuse.conv.weight.dtype
    maps = {name: value.to(dtype) for name, value in maps.items()}
    assert_equal_to_plain(module, maps)
    if change not in ("train and back", "double"):
        assert not torch.allclose(module.embed(maps), before, atol=1e-3)


def test_training_steps_are_seen() -> None:
    module, maps = embedding(), features()
    module.embed(maps)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module.train().embed(maps).square().mean().backward()
    optimizer.step()
    assert_equal_to_plain(module.eval(), maps)


def test_bfloat16_weights() -> None:
    module = embedding().to(torch.bfloat16)
    maps = {name: value.to(torch.bfloat16) for name, value in features().items()}
    with torch.no_grad():
        actual, exact = module.embed(maps), plain(module.float(), features())
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - exact).abs().max() <= 0.03 * exact.abs().max()


def test_gradients_reach_all_parts_in_eval() -> None:
    module, maps = embedding(), features()
    module.embed(maps).sum().backward()
    folded = {name: value.grad.clone() for name, value in module.named_parameters()}
    module.zero_grad()
    plain(module, maps).sum().backward()
    for name, value in module.named_parameters():
        torch.testing.assert_close(folded[name], value.grad, rtol=1e-3, atol=1e-3)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("case", ["training", "norm in training", "group norm", "wrapped linear"])
def test_the_published_order_stays_where_weights_cannot_be_composed(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = embedding("GN" if case == "group norm" else "BN")
    if case == "training":
        module.train()
    elif case == "norm in training":
        module.linear_fuse.bn.train()
    elif case == "wrapped linear":
        module.linear_c3.proj.__class__ = Doubled
    maps = features()
    expected = plain(module, maps)
    seen = wide_maps(monkeypatch)
    assert torch.equal(module.embed(maps), expected)
    assert seen == [(2, 48, 13, 21)]


def test_the_head_shares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = SegFormerHead(in_channels=CHANNELS, num_classes=5, embed_dim=12).eval()
    assert_equal_to_plain(head, features())
    names = set(head.state_dict())
    seen = wide_maps(monkeypatch)
    head.predict(head.embed(features()))
    assert seen == [(2, 12, 13, 21)]
    assert set(head.state_dict()) == names
