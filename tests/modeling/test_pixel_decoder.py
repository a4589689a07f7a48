from __future__ import annotations

import pytest
import torch

from vss2.errors import InputError
from vss2.modeling.pixel_decoder import MSDeformAttnPixelDecoder, level_geometry
from vss2.modeling.position_encoding import clip_sine_position, sine_position

CHANNELS = (8, 16, 24, 40)
CPU = torch.device("cpu")


def decoder(**options) -> MSDeformAttnPixelDecoder:
    arguments = {"conv_dim": 32, "num_heads": 4, "dim_feedforward": 48, "num_layers": 2}
    torch.manual_seed(0)
    return MSDeformAttnPixelDecoder(CHANNELS, **arguments | options)


def maps(batch: int, height: int, width: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"stage{k + 1}": torch.randn(
            batch, channels, -(-height // 2 ** (k + 2)), -(-width // 2 ** (k + 2)),
            generator=generator,
        )
        for k, channels in enumerate(CHANNELS)
    }  # fmt: skip


@pytest.mark.parametrize("size", [(64, 96), (50, 77), (32, 32), (1, 1)])
def test_every_level_keeps_its_own_size(size: tuple[int, int]) -> None:
    features = maps(2, *size)
    mask_features, multi_scale = decoder().eval()(features)
    assert mask_features.shape == (2, 32, *features["stage1"].shape[-2:])
    for level, stage in zip(multi_scale, ("stage4", "stage3", "stage2"), strict=True):
        assert level.shape == (2, 32, *features[stage].shape[-2:])
    assert mask_features.isfinite().all()


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model, features = decoder().eval(), maps(3, 64, 64)
    together = model(features).mask_features
    alone = model({name: value[1:2] for name, value in features.items()}).mask_features
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    model = decoder()
    mask_features, multi_scale = model(maps(1, 64, 64))
    (mask_features.square().mean() + sum(x.square().mean() for x in multi_scale)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_pieces_of_tokens_give_what_all_give(monkeypatch: pytest.MonkeyPatch) -> None:
    model, features = decoder().eval(), maps(2, 64, 96)
    whole = model(features)  # with gradients
    monkeypatch.setattr("vss2.modeling.pixel_decoder.TOKENS_AT_ONCE", 7)
    with torch.no_grad():
        pieces = model(features)
    torch.testing.assert_close(pieces.mask_features, whole.mask_features, rtol=0, atol=1e-5)


def test_runs_in_float32_under_autocast() -> None:
    model, features = decoder().eval(), maps(1, 64, 64)
    exact = model(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = model({name: value.bfloat16().float() for name, value in features.items()})
        half = model({name: value.bfloat16() for name, value in features.items()})
    assert same.mask_features.dtype == half.mask_features.dtype == torch.float32
    torch.testing.assert_close(same.mask_features, half.mask_features, rtol=0, atol=0)
    assert (half.mask_features - exact.mask_features).abs().max() < 0.1


def test_not_a_number_in_an_image_stays_in_it() -> None:
    model, features = decoder().eval(), maps(2, 64, 64)
    clean = model(features).mask_features[1]
    features["stage3"][0] = float("nan")
    broken = model(features).mask_features
    torch.testing.assert_close(broken[1], clean, rtol=0, atol=1e-5)
    assert not broken[0].isfinite().all()


def test_tables_made_for_inference_serve_training() -> None:
    sine_position.cache_clear()
    level_geometry.cache_clear()
    model, features = decoder(), maps(1, 48, 48)
    with torch.inference_mode():
        model(features)
    model(features).mask_features.sum().backward()
    assert model.transformer.level_embed.grad is not None


def test_codes_by_hand() -> None:
    code = sine_position(3, 5, 8, CPU)
    assert code.shape == (15, 8)
    row, column = 1, 3
    y = torch.tensor((row + 1) / (3 + 1e-6) * 2 * torch.pi)
    x = torch.tensor((column + 1) / (5 + 1e-6) * 2 * torch.pi)
    expected = [f(v / 10000 ** (k / 4)) for v in (y, x) for k, f in _terms()]
    torch.testing.assert_close(code[row * 5 + column], torch.stack(expected), rtol=0, atol=1e-6)


def _terms():
    return ((0, torch.sin), (0, torch.cos), (2, torch.sin), (2, torch.cos))


def test_time_adds_a_code_even_to_one_frame() -> None:
    clip = clip_sine_position(1, 2, 3, 8, CPU)
    time = clip[0] - sine_position(2, 3, 8, CPU)
    assert (time[0] - time).abs().max() < 1e-6
    z = torch.tensor(2 * torch.pi / (1 + 1e-6))
    expected = [f(z / 10000 ** (2 * k / 8)) for k in range(4) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(time[0], torch.stack(expected), rtol=0, atol=1e-6)


def test_centres_of_pixels() -> None:
    geometry = level_geometry(((1, 2), (2, 2)), CPU)
    assert geometry.spatial_shapes.tolist() == [[1, 2], [2, 2]]
    assert geometry.level_start_index.tolist() == [0, 2]
    points = geometry.reference_points
    assert points.shape == (1, 6, 2, 2)
    assert points[0, :, 0].tolist() == [
        [0.25, 0.5], [0.75, 0.5], [0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75],
    ]  # fmt: skip
    assert torch.equal(points[:, :, 0], points[:, :, 1])


def test_widths_that_do_not_divide_are_named() -> None:
    with pytest.raises(InputError, match="got 48"):
        decoder(conv_dim=48)
    with pytest.raises(InputError, match="5 heads"):
        decoder(num_heads=5)
