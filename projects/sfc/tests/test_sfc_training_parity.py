"""Training steps, crops and clip order against those of the published training."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.engine.train import build_optimizer
from vss2.projects.sfc import FineGrainedCorrespondence, FrameEncoder
from vss2.projects.sfc.data import Clips, box_coordinates, crop, epoch_order, random_crop_box
from vss2.projects.sfc.loss import cells, positive_pairs
from vss2.testing.fixtures import filled_state_dict, image_clip, load_fixture

RULES = load_fixture("sfc_train")[0]["host_rules"]
SIZE = 64
ZERO_GRADIENT = (
    "online_projector.linear1.bias",
    "online_projector.linear2.bias",
    "predictor.linear1.bias",
)


def model_of(description: dict[str, Any], total_steps: int) -> FineGrainedCorrespondence:
    """The model with the fixture's weights, in training mode."""
    model = FineGrainedCorrespondence(
        encoder=FrameEncoder(18, num_stages=4), total_steps=total_steps
    )
    load(model, description)
    return model.train()


def load(model: FineGrainedCorrespondence, description: dict[str, Any]) -> None:
    layout = {**description["layout"], **description["int_buffers"]}
    state = filled_state_dict(layout, description["seed"])
    own = model.state_dict()
    named, _ = model.convert_checkpoint(state)
    # The fixture's statistics are those of the file: the release trains on without the warm-up.
    named = {**named, **state}
    assert named.keys() == own.keys()
    model.load_state_dict(named)


def batch_of(description: dict[str, Any], arrays: dict[str, Any]) -> list[dict[str, Any]]:
    """The fixture's samples: crops of its frames, checked against the recorded views."""
    clip = description["input"]["image_clip"]
    frames = image_clip(*clip)
    height, width = clip[1:3]
    boxes = description["input"]["boxes_ijhw"]
    views = np.stack([crop(frames[i], tuple(b), SIZE) for v in boxes for i, b in enumerate(v)])
    levels = np.abs(views.astype(int) - arrays["views_u8"])
    assert levels.max() <= 1
    assert (levels > 0).mean() < 1e-3
    coordinates = [[box_coordinates(tuple(b), height, width) for b in v] for v in boxes]
    np.testing.assert_allclose(coordinates, arrays["coords"], atol=1e-6, rtol=0)
    recorded = torch.from_numpy(arrays["views_u8"]).permute(0, 3, 1, 2).unflatten(0, (2, -1))
    return [
        {
            "frames": recorded[:, i, None],
            "boxes": torch.tensor(coordinates)[:, i, None],
            "image_size": (SIZE, SIZE),
        }
        for i in range(clip[0])
    ]


def test_one_training_step() -> None:
    description, arrays = load_fixture("sfc_train")
    checks = description["checks"]
    model = model_of(description, total_steps=20)
    samples = batch_of(description, arrays)
    kept: dict[str, torch.Tensor] = {}
    predict, project = model.predict, model.project_target
    model.predict = lambda x: kept.setdefault(f"pred_{1 + ('pred_1' in kept)}", predict(x))
    model.project_target = lambda x: kept.setdefault(
        f"target_{1 + ('target_1' in kept)}", project(x)
    )
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    assert model.current_momentum() == pytest.approx(checks["ema_momentum"][0], abs=1e-12)
    losses = model(samples)
    del model.predict, model.project_target
    for name in ("pred_1", "target_2"):
        np.testing.assert_allclose(
            kept[name][:, ::8].detach().numpy(), arrays[name], atol=1e-4, rtol=0
        )
    parts = [losses["loss_12"].item(), losses["loss_21"].item()]
    np.testing.assert_allclose(parts, checks["loss_12_21"], atol=1e-4, rtol=0)
    state = model.state_dict()
    for key, name in (
        ("ema_target_encoder_conv1_weight", "target_encoder.conv1.weight"),
        ("ema_target_projector_linear2_weight", "target_projector.linear2.weight"),
    ):
        np.testing.assert_allclose(state[name].flatten()[:256], arrays[key], atol=1e-6, rtol=0)
    for module, values in checks["bn_after_first_step"].items():
        for key, expected in values.items():
            found = state[f"{module}.{key.removesuffix('[:4]')}"]
            found = found[:4] if key.endswith("[:4]") else found
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    for name, expected in checks["grad_norm"].items():
        assert parameters[name].grad.norm().item() == pytest.approx(expected, rel=1e-3), name
    assert sum(p.grad is not None for p in parameters.values()) == checks["params_with_grad"]
    optimizer.step()
    assert model.current_momentum() == pytest.approx(checks["ema_momentum"][1], abs=1e-12)
    with torch.no_grad():
        again = sum(model(samples).values()).item()
    assert again == pytest.approx(checks["loss_after_adam_step"], abs=1e-3)


def test_positive_pairs_of_the_fixture() -> None:
    description, arrays = load_fixture("sfc_train")
    boxes = torch.from_numpy(arrays["coords"])
    views = [cells(b, 8, 8) for b in boxes]
    counts = [positive_pairs(*pair, 0.5).sum((1, 2)).tolist() for pair in (views, views[::-1])]
    assert counts == description["checks"]["positives_per_sample_12_21"]


@pytest.mark.parametrize("run", ["published", "lr_1e-5"])
def test_three_training_steps_of_the_config(run: str) -> None:
    description, arrays = load_fixture("train_sfc")
    cfg = load_config("sfc/sfc_fine_grained_ytvos")
    cfg.model.total_steps = description["config"]["total_steps"]
    cfg.optimizer.lr = description["config"]["runs"][run]
    model = instantiate(cfg.model)
    load(model, description)
    model.train()
    optimizer = build_optimizer(cfg, model)
    samples = batch_of(description, arrays)
    tolerance = description["tolerance"][run + (" (lr 1e-3)" if run == "published" else "")]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses, moments, norms = [], [], []
    for _ in range(3):
        moments.append(model.current_momentum())
        terms = model(samples)
        losses.append(sum(terms.values()).item())
        optimizer.zero_grad()
        sum(terms.values()).backward()
        norms.append(gradient_norms(model, description))
        optimizer.step()
    check_losses(description, run, losses, moments)
    check_gradients(arrays, run, norms, tolerance)
    check_slices(description, arrays, run, before, model, optimizer, tolerance)


def gradient_norms(model: FineGrainedCorrespondence, description: dict[str, Any]) -> list[float]:
    parameters = dict(model.named_parameters())
    return [parameters[n].grad.double().norm().item() for n in description["config"]["parameters"]]


def check_losses(
    description: dict[str, Any], run: str, losses: list[float], moments: list[float]
) -> None:
    checks, tolerance = description["checks"][run], description["tolerance"]
    expected = next(v for k, v in checks.items() if k.startswith("losses"))[:3]
    limits = [1e-5, 5e-4, 1e-2] if run == "published" else [1e-4] * 3
    for value, wanted, limit in zip(losses, expected, limits, strict=True):
        assert abs(value - wanted) <= limit
    for value, wanted in zip(moments, checks["ema_momentum"], strict=False):
        assert abs(value - wanted) <= tolerance["ema_momentum"]


def check_gradients(
    arrays: dict[str, Any], run: str, norms: list[list[float]], tolerance: dict[str, Any]
) -> None:
    names = load_fixture("train_sfc")[0]["config"]["parameters"]
    kept = [i for i, name in enumerate(names) if name not in ZERO_GRADIENT]
    given = next(v for k, v in tolerance.items() if k.startswith("gradient norms"))
    limits = given if isinstance(given, list) else [given]
    recorded = arrays[f"{run}/grad_norms"]
    for step, limit in enumerate(limits):
        found = np.array(norms[step])[kept]
        np.testing.assert_allclose(found, recorded[step][kept], rtol=limit, atol=0)


def check_slices(
    description: dict[str, Any],
    arrays: dict[str, Any],
    run: str,
    before: dict[str, torch.Tensor],
    model: FineGrainedCorrespondence,
    optimizer: torch.optim.Optimizer,
    tolerance: dict[str, Any],
) -> None:
    """Changes and first moments at the recorded places, and running statistics."""
    parameters, state = dict(model.named_parameters()), model.state_dict()
    places = description["config"]["flat_index"][run]
    compared = 0
    for key, expected in arrays.items():
        group, _, rest = key.partition("/")
        name, _, what = rest.partition("/")
        if group != run or name == "grad_norms":
            continue
        if what == "change":
            kind = "target change slices" if name.startswith("target") else "online change slices"
            found = (state[name] - before[name]).flatten()[places[name]]
            limit = tolerance[f"{kind}, of the largest value"]
        elif what == "exp_avg":
            found = optimizer.state[parameters[name]]["exp_avg"].flatten()[places[name]]
            limit = tolerance["first moment slices, of the largest value"]
        else:
            found = state[name][: len(expected)]
            limits = tolerance["running statistics online / target, of the largest value"]
            limit = limits[name.startswith("target")]
        error = np.abs(found.numpy() - expected).max()
        assert error <= limit * np.abs(expected).max(), f"{key}: {error:.3g}"
        compared += 1
    assert compared > 10


@pytest.mark.parametrize("rule", RULES["random_resized_crop"])
def test_crop_boxes(rule: dict[str, Any]) -> None:
    rng = random.Random(rule["random.seed"])
    height, width = rule["image_hw"]
    boxes = [
        list(random_crop_box(height, width, rule["scale"], (3 / 4, 4 / 3), rng))
        for _ in rule["boxes_ijhw"]
    ]
    assert boxes == rule["boxes_ijhw"]


@pytest.mark.parametrize("rule", RULES["clip_unfold"])
def test_clips_of_a_video(rule: dict[str, Any]) -> None:
    video = {"video_id": "a", "frames": list(range(rule["frames"]))}
    clips = Clips([video], rule["clip_len"], rule["frame_rate"])
    assert clips.dilation == rule["dilation"]
    assert len(clips) == rule["clips"]
    if len(clips):
        assert clips[0]["frames"] == rule["first"]
        assert clips[len(clips) - 1]["frames"] == rule["last"]
    with pytest.raises(IndexError):
        clips[len(clips)]


def test_order_of_an_epoch() -> None:
    rule = RULES["clip_sampler"]
    generator = torch.Generator().manual_seed(rule["torch.manual_seed"])
    order = epoch_order(rule["clips_in_videos"], rule["max_per_video"], generator)
    assert len(order) == rule["length"]
    assert order[:40] == rule["order_first_40"]
