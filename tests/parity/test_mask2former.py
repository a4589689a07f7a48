"""Mask2Former's pixel decoder, transformer decoders and losses against the published code."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from vss2.modeling.criterion import MaskCriterion, PointSampler
from vss2.modeling.mask_targets import mask_targets
from vss2.modeling.matcher import HungarianMatcher
from vss2.modeling.pixel_decoder import MSDeformAttnPixelDecoder
from vss2.modeling.position_encoding import sine_position
from vss2.modeling.transformer_decoder import (
    MaskedAttentionDecoder,
    MaskPrediction,
    semantic_scores,
)
from vss2.testing.fixtures import filled_state_dict, load_fixture

TOLERANCE = 1e-4
MASK_TOLERANCE = 2e-4  # of mask logits, whose values are some ten times larger


def generator(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)


def rnd(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The fixtures' rule for inputs at seed 0: standard normal values."""
    return torch.from_numpy(generator(name).standard_normal(shape).astype(np.float32))


def uni(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The fixtures' rule for points: uniform in [0, 1)."""
    return torch.from_numpy(generator(name).random_sample(shape).astype(np.float32))


def largest_error(value: torch.Tensor, expected: np.ndarray) -> float:
    assert value.shape == expected.shape
    return (value.detach() - torch.from_numpy(expected)).abs().max().item()


@pytest.mark.parametrize("case", ["mit_b0", "r50", "mit_b1_odd"])
def test_pixel_decoder(case: str) -> None:
    description, arrays = load_fixture("mask2former_pixel_decoder")
    config, layout = description["config"][case], description["layout"]["per_case"][case]
    decoder = MSDeformAttnPixelDecoder(config["channels"]).eval()
    assert {name: list(value.shape) for name, value in decoder.state_dict().items()} == layout
    decoder.load_state_dict(filled_state_dict(layout))

    recorded = {}
    for index in (0, 5):
        decoder.transformer.encoder["layers"][index].register_forward_hook(
            lambda module, args, output, index=index: recorded.update({index: output})
        )
    features = {
        f"stage{k}": rnd(f"{case}.res{k + 1}", (1, channels, *size))
        for k, channels, size in zip(
            range(1, 5), config["channels"], config["sizes_hw"], strict=True
        )
    }
    with torch.no_grad():
        mask_features, multi_scale = decoder(features)
    code = sine_position(*config["sizes_hw"][3], 256, torch.device("cpu"))
    values = {
        "mask_features_c8": mask_features[:, ::8],
        "multi_scale0_c1": multi_scale[0],
        "multi_scale1_c2": multi_scale[1][:, ::2],
        "multi_scale2_c4": multi_scale[2][:, ::4],
        "encoder_layer0_slice": recorded[0][:, ::7, ::16],
        "encoder_layer5_slice": recorded[5][:, ::7, ::16],
        "pos_res5_c16": code.T.unflatten(1, config["sizes_hw"][3])[None, ::16],
    }
    for name, value in values.items():
        assert largest_error(value, arrays[f"{case}/{name}"]) < TOLERANCE, name
    stats = config["stats_mean_std"]["mask_features"]
    found = [mask_features.mean().item(), mask_features.std(unbiased=False).item()]
    assert np.allclose(found, stats, atol=1e-3)


@pytest.mark.parametrize("case", ["image", "video"])
@pytest.mark.parametrize("fast", [False, True], ids=["published", "fast"])
def test_transformer_decoder(case: str, fast: bool) -> None:
    description, arrays = load_fixture("mask2former_decoder")
    config, layout = description["config"], description["layout"]["per_case"][case]
    decoder = MaskedAttentionDecoder(
        config["num_classes"],
        video=case == "video",
        num_queries=config["num_queries"],
        fast_attention_masks=fast,
    ).eval()
    assert {name: list(value.shape) for name, value in decoder.state_dict().items()} == layout
    decoder.load_state_dict(filled_state_dict(layout))

    count = config["cases"][case]["batch_or_frames"]
    *sizes, fine = config["cases"][case]["sizes_hw"]
    multi_scale = [
        rnd(f"{case}.multi_scale{level}", (count, 256, *size)) for level, size in enumerate(sizes)
    ]
    mask_features = rnd(f"{case}.mask_features", (count, 256, *fine))
    frames = count if case == "video" else 1
    with torch.no_grad():
        final = decoder(multi_scale, mask_features, frames)[-1]
        every = decoder(multi_scale, mask_features, frames, auxiliary=True)
    assert len(every) == 10
    assert largest_error(final.class_logits[:, ::2], arrays[f"{case}/pred_logits_q2"]) < TOLERANCE
    masks = final.masks if case == "video" else final.masks.squeeze(2)
    assert largest_error(masks[:, ::8], arrays[f"{case}/pred_masks_q8"]) < MASK_TOLERANCE
    for index in (0, 1):
        logits = every[index].class_logits[:, ::8]
        assert largest_error(logits, arrays[f"{case}/aux{index}_logits_q8"]) < TOLERANCE
    for index, prediction in enumerate(every[:-1]):
        mean, deviation = config["cases"][case]["stats_mean_std"][f"aux{index}_masks"]
        assert abs(prediction.masks.mean().item() - mean) < TOLERANCE
        assert abs(prediction.masks.std().item() - deviation) < TOLERANCE
    if case == "image":
        scores = semantic_scores(final)[:, 0]
        assert largest_error(scores[:, ::4], arrays["image/sem_seg_c4"]) < TOLERANCE


@pytest.mark.parametrize("case", ["image", "video"])
def test_losses(case: str) -> None:
    description, arrays = load_fixture("mask2former_losses")
    config = description["config"]
    recorded = config["cases"][case]
    items, frames = config["items"], config["frames"] if case == "video" else 1
    size = (frames, *config["mask_hw"]) if case == "video" else tuple(config["mask_hw"])
    names = [f"aux{index}" for index in range(config["layers"] - 1)] + ["final"]
    predictions = []
    for name in names:
        logits = 2 * rnd(
            f"{case}.{name}.pred_logits", (items, config["queries"], config["num_classes"] + 1)
        )
        masks = 3 * rnd(f"{case}.{name}.pred_masks", (items, config["queries"], *size))
        masks = masks if case == "video" else masks[:, :, None]
        predictions.append(MaskPrediction(logits.requires_grad_(), masks.requires_grad_()))
    labels = torch.from_numpy(arrays["labels"]).long()[:, :frames, 0]
    targets = mask_targets(labels)

    drawn = []

    def draw(name: str, rows: int, points: int, device: torch.device) -> torch.Tensor:
        drawn.append([name, [rows, points, 2]])
        return uni(name, (rows, points, 2))

    criterion = MaskCriterion(
        config["num_classes"],
        matcher=HungarianMatcher(num_points=config["num_points"]),
        points=PointSampler(num_points=config["num_points"]),
    )
    criterion.points.draw = draw
    losses = criterion(predictions, targets)
    assert sorted(drawn) == sorted(recorded["points_used"])
    assert losses.keys() == recorded["losses"].keys()
    for name, expected in recorded["losses"].items():
        assert np.isclose(losses[name].item(), expected, rtol=1e-5), name
    total = sum(losses.values())
    assert np.isclose(total.item(), recorded["total"], rtol=1e-5)

    matches = criterion.matcher.match(predictions, targets, draw, names)
    for name, match in zip(names, matches, strict=True):
        found = [[pair.queries.tolist(), pair.targets.tolist()] for pair in match]
        assert found == recorded["matching"][name]

    total.backward()
    final = predictions[-1]
    grad = final.masks.grad if case == "video" else final.masks.grad[:, :, 0]
    assert largest_error(grad[:, ::2], arrays[f"{case}/grad_final_masks_q2"]) < 1e-6
    assert largest_error(final.class_logits.grad, arrays[f"{case}/grad_final_logits"]) < 1e-6
