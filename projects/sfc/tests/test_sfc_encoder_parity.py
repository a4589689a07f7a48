"""Encoders against the numbers of the published ones, from files of every publisher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sfc_cases import layouts, part_of, published_model

from vss2.projects.sfc import SFC
from vss2.testing.fixtures import image_clip, load_fixture

DESCRIPTION, ARRAYS = load_fixture("sfc_encoder")
VARIANTS = list(DESCRIPTION["variants"])


def images(model: SFC) -> torch.Tensor:
    count, height, width, seed = DESCRIPTION["input"]["image_clip"]
    frames = torch.from_numpy(image_clip(count, height, width, seed)).permute(0, 3, 1, 2)
    return model.normalize(frames)


def assert_close(value: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-4)


def step(variant: str, frame: int) -> int:
    """Every how many channels the fixture holds."""
    channels = DESCRIPTION["variants"][variant]["feature"]["shape"][1]
    key = f"feat_{variant.replace('-', '_')}" + ("_f1" if frame else "")
    return channels // ARRAYS[key].shape[0]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_features_of_every_publisher_with_the_warm_up(variant: str, tmp_path: Path) -> None:
    model = published_model(tmp_path, variant)
    encoder = getattr(model, part_of(variant))
    features = encoder(images(model))["stage3"]
    described = layouts()[variant]
    assert list(features.shape) == [2, *np.delete(described["feature"]["shape"], [0, 2])]
    key = f"feat_{variant.replace('-', '_')}"
    for frame, name in enumerate((key, f"{key}_f1")):
        assert_close(features[frame, :: step(variant, frame)], ARRAYS[name])
    state = encoder.state_dict()
    for name, values in described["bn_after_warmup_first4"].items():
        np.testing.assert_allclose(state[name][:4], values, rtol=1e-5, atol=1e-6)
    used = sum(p.numel() for p in encoder.parameters())
    assert used == described["params_used"]


@pytest.mark.parametrize("variant", ["fine-grained", "mocov1"])
@torch.no_grad()
def test_features_without_the_warm_up(variant: str, tmp_path: Path) -> None:
    model = published_model(tmp_path, variant, bn_warmup=False)
    encoder = getattr(model, part_of(variant))
    features = encoder(images(model))["stage3"]
    expected = ARRAYS[f"feat_{variant.replace('-', '_')}_no_warmup"]
    assert_close(features[0, :: features.shape[1] // len(expected)], expected)
    assert not encoder.bn_warmed


@torch.no_grad()
def test_fused_features(tmp_path: Path) -> None:
    model = published_model(tmp_path, "fine-grained", "mocov1")
    fused = model.encode(images(model))
    assert fused.shape == (2, 1280, 9, 12)
    assert_close(fused[0, ::16], ARRAYS["fused_f0"])
