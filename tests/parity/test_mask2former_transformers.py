"""Mask2Former's parts against the `transformers` package, at random sizes and seeds.

Runs where the package is installed (`pip install vss2[test]`). It is an implementation that shares
no code with this one, so it covers what the recorded fixtures do not.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from vss2.modeling.backbone import ResNet
from vss2.modeling.criterion import MaskCriterion, PointSampler
from vss2.modeling.mask2former import Mask2Former
from vss2.modeling.mask_targets import mask_targets
from vss2.modeling.matcher import HungarianMatcher
from vss2.modeling.pixel_decoder import MSDeformAttnPixelDecoder
from vss2.modeling.transformer_decoder import MaskedAttentionDecoder, MaskPrediction
from vss2.testing.fixtures import filled_state_dict

pytest.importorskip("transformers", reason="needs the package transformers")
pytest.importorskip("transformers.models.mask2former.modeling_mask2former")

from transformers.models.mask2former import modeling_mask2former as theirs
from transformers.models.mask2former.configuration_mask2former import (
    Mask2FormerConfig,
)

NUM_CLASSES = 19
NUM_QUERIES = 30
SIZES = [((2, 3), (4, 6), (8, 12), (16, 24)), ((3, 2), (5, 4), (9, 7), (17, 13))]


def config(**changes) -> Mask2FormerConfig:
    return Mask2FormerConfig(
        **{
            "encoder_layers": 6,
            "decoder_layers": 10,
            "num_queries": NUM_QUERIES,
            "num_labels": NUM_CLASSES,
            "encoder_feedforward_dim": 1024,
            "dim_feedforward": 2048,
            "class_weight": 2.0,
            "dropout": 0.0,
        }
        | changes
    )


def fill(module: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Load weights made from the names of a module; returns them."""
    layout = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    state = filled_state_dict(layout, seed)
    module.load_state_dict(state)
    module.eval()
    return state


def pixel_decoder_name(name: str) -> str:
    for pattern, replacement in (
        (r"^input_proj\.", "input_projections."),
        (r"^transformer\.", ""),
        (r"\.norm1\.", ".self_attn_layer_norm."),
        (r"\.linear1\.", ".fc1."),
        (r"\.linear2\.", ".fc2."),
        (r"\.norm2\.", ".final_layer_norm."),
        (r"^mask_features\.", "mask_projection."),
        (r"^(adapter|layer)_1\.(weight|bias)$", r"\1_1.0.\2"),
        (r"^(adapter|layer)_1\.norm\.", r"\1_1.1."),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def decoder_entries(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    match = re.match(r"^transformer_(\w+?)(?:_layers|_attention_layers)\.(\d+)\.(.+)$", name)
    if match is None:
        for pattern, replacement in (
            (r"^query_feat\.", "queries_features."),
            (r"^query_embed\.", "queries_embedder."),
            (r"^decoder_norm\.", "decoder.layernorm."),
            (r"^mask_embed\.layers\.(\d)\.", r"decoder.mask_predictor.mask_embedder.\1.0."),
        ):
            name = re.sub(pattern, replacement, name)
        return {name: value}
    kind, prefix, rest = match[1], f"decoder.layers.{match[2]}.", match[3]
    if kind == "ffn":
        renamed = {"linear1": "fc1", "linear2": "fc2", "norm": "final_layer_norm"}
        first, leaf = rest.split(".")
        return {f"{prefix}{renamed[first]}.{leaf}": value}
    attention = "cross_attn" if kind == "cross" else "self_attn"
    if rest.startswith("norm."):
        return {f"{prefix}{attention}_layer_norm.{rest.removeprefix('norm.')}": value}
    rest = rest.split(".", 1)[1]
    if kind == "self" and rest.startswith("in_proj_"):
        leaf = rest.removeprefix("in_proj_")
        return {
            f"{prefix}self_attn.{letter}_proj.{leaf}": part
            for letter, part in zip("qkv", value.chunk(3), strict=True)
        }
    return {f"{prefix}{attention}.{rest}": value}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("channels", [(32, 64, 160, 256), (256, 512, 1024, 2048)])
def test_pixel_decoder(sizes, channels) -> None:
    ours = MSDeformAttnPixelDecoder(channels)
    state = fill(ours, seed=3)
    other = theirs.Mask2FormerPixelDecoder(config(), list(channels)).eval()
    other.load_state_dict({pixel_decoder_name(name): value for name, value in state.items()})
    maps = [
        random(2, count, *size, seed=index)
        for index, (count, size) in enumerate(zip(channels, reversed(sizes), strict=True))
    ]
    with torch.no_grad():
        found = ours({f"stage{index + 1}": x for index, x in enumerate(maps)})
        expected = other(maps)
    torch.testing.assert_close(found.mask_features, expected.mask_features, rtol=0, atol=2e-5)
    for mine, its in zip(found.multi_scale, expected.multi_scale_features, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=2e-5)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", [1, 2])
def test_transformer_decoder(sizes, seed: int) -> None:
    ours = MaskedAttentionDecoder(NUM_CLASSES, num_queries=NUM_QUERIES)
    state = fill(ours, seed)
    other = theirs.Mask2FormerTransformerModule(256, config()).eval()
    class_predictor = nn.Linear(256, NUM_CLASSES + 1)
    renamed: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name.startswith("class_embed."):
            class_predictor.state_dict()[name.removeprefix("class_embed.")].copy_(value)
        else:
            renamed |= decoder_entries(name, value)
    other.load_state_dict(renamed)
    *coarse, fine = sizes
    multi_scale = [random(2, 256, *size, seed=index) for index, size in enumerate(coarse)]
    mask_features = random(2, 256, *fine, seed=9)
    with torch.no_grad():
        found = ours(multi_scale, mask_features, auxiliary=True)
        expected = other(multi_scale, mask_features)
        logits = [
            class_predictor(state.transpose(0, 1)) for state in expected.intermediate_hidden_states
        ]
    assert len(found) == len(expected.masks_queries_logits) == 10
    for mine, masks, classes in zip(found, expected.masks_queries_logits, logits, strict=True):
        torch.testing.assert_close(mine.masks[:, :, 0], masks, rtol=0, atol=2e-4)
        torch.testing.assert_close(mine.class_logits, classes, rtol=0, atol=2e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_losses(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points, items = 112, 3
    names = ["aux0", "aux1", "final"]
    predictions = [
        MaskPrediction(
            2 * random(items, NUM_QUERIES, NUM_CLASSES + 1, seed=seed * 10 + index),
            3 * random(items, NUM_QUERIES, 1, 16, 16, seed=seed * 20 + index),
        )
        for index in range(len(names))
    ]
    generator = np.random.RandomState(seed)
    blocks = generator.choice([0, 3, 7, 11, 18, 255], (items, 1, 6, 6)).repeat(8, 2).repeat(8, 3)
    blocks[-1] = 255
    targets = mask_targets(torch.from_numpy(blocks))

    drawn: list[torch.Tensor] = []
    real = torch.rand

    def remember(*shape: int, **options) -> torch.Tensor:
        drawn.append(real(*shape, **options))
        return drawn[-1]

    criterion = theirs.Mask2FormerLoss(config(train_num_points=points), {})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", remember)
        torch.manual_seed(seed)
        expected = criterion(
            predictions[-1].masks[:, :, 0],
            predictions[-1].class_logits,
            [target.masks[:, 0] for target in targets],
            [target.labels for target in targets],
            [
                {"masks_queries_logits": p.masks[:, :, 0], "class_queries_logits": p.class_logits}
                for p in predictions[:-1]
            ],
        )
    order = [names[-1], *names[:-1]]
    keys = [
        key
        for name in order
        for key in (
            *(f"points.match.{name}.item{index}.a" for index in range(items)),
            f"points.loss.{name}.a",
            f"points.loss.{name}.b",
        )
    ]
    recorded = dict(zip(keys, drawn, strict=True))

    own = MaskCriterion(
        NUM_CLASSES, matcher=HungarianMatcher(num_points=points), points=PointSampler(points)
    )
    own.points.draw = lambda name, rows, count, device: recorded[name]
    found = own(predictions, targets)
    factors = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    for name, value in found.items():
        kind = re.sub(r"_\d$", "", name)
        its = expected[name.replace("loss_ce", "loss_cross_entropy")] * factors[kind]
        torch.testing.assert_close(value, its, rtol=1e-5, atol=1e-6)


def resnet_name(name: str) -> str:
    name = re.sub(r"^(conv1|bn1)\.", r"embedder.embedder.\1.", name)
    name = re.sub(
        r"^layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", name
    )
    name = re.sub(r"\.downsample\.0\.", ".shortcut.convolution.", name)
    name = re.sub(r"\.downsample\.1\.", ".shortcut.normalization.", name)
    if "encoder.stages" in name:
        name = re.sub(r"\.(conv|bn)(\d)\.", lambda m: f".layer.{int(m[2]) - 1}.{m[1]}{m[2]}.", name)
    name = re.sub(r"\.conv\d\.", ".convolution.", name)
    return re.sub(r"\.bn\d\.", ".normalization.", name)


def whole_model_entries(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    backbone, pixel_decoder, predictor = (
        "backbone.",
        "sem_seg_head.pixel_decoder.",
        "sem_seg_head.predictor.",
    )
    if name.startswith(backbone):
        rest = resnet_name(name.removeprefix(backbone))
        return {f"model.pixel_level_module.encoder.{rest}": value}
    if name.startswith(pixel_decoder):
        rest = pixel_decoder_name(name.removeprefix(pixel_decoder))
        return {f"model.pixel_level_module.decoder.{rest}": value}
    if name.startswith(predictor + "class_embed."):
        return {name.replace(predictor + "class_embed", "class_predictor"): value}
    if name.startswith(predictor):
        entries = decoder_entries(name.removeprefix(predictor), value)
        return {f"model.transformer_module.{rest}": part for rest, part in entries.items()}
    return {name: value}


def test_whole_model_with_a_resnet() -> None:
    from transformers import ResNetConfig

    ours = Mask2Former(
        backbone=ResNet(18),
        num_classes=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        criterion=MaskCriterion(NUM_CLASSES, matcher=HungarianMatcher(), points=PointSampler()),
    )
    state = fill(ours, seed=5)
    backbone = ResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    other = theirs.Mask2FormerForUniversalSegmentation(config(backbone_config=backbone)).eval()
    renamed: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        renamed |= whole_model_entries(name, value)
    report = other.load_state_dict(renamed, strict=False)
    assert not report.missing_keys
    assert not report.unexpected_keys
    frames = torch.randint(0, 256, (2, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    frames = frames.to(torch.uint8)
    with torch.no_grad():
        expected = other(pixel_values=ours.normalize(frames))
        features = ours.encode(ours.normalize(frames))
        clip = [{name: value[i : i + 1] for name, value in features.items()} for i in range(2)]
        found = ours.predict_masks(clip, [0, 1])
    classes = expected.class_queries_logits.softmax(-1)[..., :-1]
    torch.testing.assert_close(found["classes"], classes, rtol=0, atol=1e-5)
    masks = expected.masks_queries_logits
    torch.testing.assert_close(found["masks"], masks, rtol=0, atol=1e-5 * masks.abs().max().item())
