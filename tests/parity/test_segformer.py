"""SegFormer B0, both fuse norms, against the published head; three steps of the recipe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.d2.utils import EventStorage
from vss2.modeling.backbone import MixTransformer
from vss2.modeling.losses import pixel_accuracy, pixel_cross_entropy, resize_scores
from vss2.modeling.segformer import SegFormer
from vss2.testing.fixtures import (
    assert_recorded,
    filled_state_dict,
    image_clip,
    load_fixture,
    synthetic_label,
)
from vss2.testing.training_steps import check_training_steps, silence_dropout

PUBLISHED_PARAMETERS = {"b0": 3_762_008, "b1": 13_725_112, "b2": 24_769_976, "b5": 82_016_696}


def frames_of(frames: int, height: int, width: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(image_clip(frames, height, width, seed)).permute(0, 3, 1, 2)


def full_layout(description: dict) -> dict:
    return description["layout"] | description["int_buffers"]


@pytest.mark.parametrize(("fixture", "norm"), [("segformer_b0", "GN"), ("segformer_bn_b0", "BN")])
def test_names_features_logits_labels_and_loss(fixture: str, norm: str) -> None:
    description, arrays = load_fixture(fixture)
    model = SegFormer(backbone=MixTransformer("b0"), num_classes=124, norm=norm).eval()
    layout = full_layout(description)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == layout
    model.load_state_dict(filled_state_dict(layout, description["seed"]))

    frames = frames_of(2, 96, 160, 0)
    with torch.no_grad():
        features = model.backbone(model.normalize(frames))
        fused = model.decode_head.embed(features)
    logits = model.predict_clip(frames)
    for stage, feature in features.items():
        assert_recorded(description, arrays, stage, feature)
    assert_recorded(description, arrays, "fuse", fused)
    assert_recorded(description, arrays, "logits", logits)

    resized = resize_scores(logits, (96, 160))
    top = resized.topk(2, dim=1).values
    clear = (top[:, 0] - top[:, 1] > 1e-4).numpy()
    labels = resized.argmax(1).numpy()
    assert (labels == arrays["argmax"])[clear].all()
    target = torch.from_numpy(synthetic_label(2, 96, 160))
    assert np.isclose(pixel_cross_entropy(logits, target).item(), arrays["loss"][0], rtol=1e-5)
    assert abs(pixel_accuracy(logits, target).item() - arrays["acc"][0]) < 0.05


@pytest.mark.parametrize("size", list(PUBLISHED_PARAMETERS))
def test_configs_build_models_with_the_published_parameter_counts(size: str) -> None:
    cfg = load_config(f"segformer/segformer_mit_{size}_vspw")
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_PARAMETERS[size]


def test_three_optimizer_steps_of_the_published_recipe() -> None:
    description, arrays = load_fixture("train_segformer_bn_b0")
    cfg = load_config("segformer/segformer_mit_b0_vspw")
    model = instantiate(cfg.model)
    layout = full_layout(description)
    model.load_state_dict(filled_state_dict(layout, description["seed"]))
    silence_dropout(model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8

    labels = torch.from_numpy(synthetic_label(4, 64, 96))
    labels[3, :, 86:] = 255
    frames = frames_of(4, 64, 96, 6000)
    samples = [
        {
            "frames": frames[t : t + 1],
            "sem_seg": labels[t : t + 1],
            "labelled": torch.ones(1, dtype=torch.bool),
            "image_size": (64, 96),
        }
        for t in range(4)
    ]

    def compute_loss() -> tuple[torch.Tensor, dict[str, float]]:
        with EventStorage() as storage:
            losses = model(samples)
        loss = sum(losses.values())
        return loss, {"target": loss.item(), "acc": storage.latest()["accuracy"][0]}

    check_training_steps(
        description, arrays, model, optimizer, instantiate(cfg.lr_multiplier), compute_loss
    )


def test_schedule_equals_the_published_table() -> None:
    description, _ = load_fixture("train_segformer_bn_b0")
    schedule = instantiate(load_config("segformer/segformer_mit_b0_vspw").lr_multiplier)
    for iteration, factor in description["lr_factor_table"].items():
        assert np.isclose(schedule(int(iteration) / 160000), factor, rtol=1e-9, atol=0)
