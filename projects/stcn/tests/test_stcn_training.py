"""Training graph, losses, gradients and three optimizer steps against recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from stcn_cases import assert_near, build, clip, gram_error, load_filled, small

from vss2.checkpoint import load_weights
from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.d2.utils import EventStorage
from vss2.errors import InputError
from vss2.projects.stcn import STCN
from vss2.testing.fixtures import filled_state_dict, load_fixture


def samples_of(
    classes: np.ndarray, selector: list[list[float]], seed: int, grey: bool = False
) -> list[dict[str, Any]]:
    """Training samples of recorded class maps [B, T, H, W]."""
    samples = []
    for b, (masks, chosen) in enumerate(zip(classes, selector, strict=True)):
        sample = {
            "frames": clip(masks.shape[0], *masks.shape[1:], seed=seed + b),
            "masks": torch.from_numpy(masks),
            "num_objects": int(sum(chosen)),
            "image_size": masks.shape[1:],
        }
        if grey:
            sample["masks"] = (sample["masks"] == 1).to(torch.uint8)
            sample["soft_masks"] = sample["masks"] * 255
            sample["num_objects"] = 1
        samples.append(sample)
    return samples


def losses_at(model: STCN, samples: list[dict[str, Any]], iteration: int) -> Any:
    with EventStorage(iteration) as storage:
        losses = model(samples)
    return losses, {name: value[0] for name, value in storage.latest().items()}


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    return load_fixture("stcn_train")[0]


@pytest.mark.parametrize("kind", ["multi", "single"])
def test_training_graph(description: dict[str, Any], kind: str) -> None:
    arrays = load_fixture("stcn_train")[1]
    single = kind == "single"
    layout = dict(description["layout"])
    if single:
        layout |= {n: s for n, s in description["layout_single"].items() if n != "*"}
    model = load_filled(build(single_object=single), {**description, "layout": layout}).train()
    config = description["config"]
    samples = samples_of(arrays["input/cls_gt"], config["selector"], 0, grey=single)
    seen: dict[int, torch.Tensor] = {}
    segment = model._segment

    def watched(features: Any, memory: Any, present: Any) -> torch.Tensor:
        seen[len(memory)] = log_odds = segment(features, memory, present)
        return log_odds

    model._segment = watched  # type: ignore[method-assign]
    limit = 1e-4
    losses, logged = losses_at(model, samples, 0)
    truth = torch.stack([sample["masks"] for sample in samples]).long()
    present = torch.tensor(config["selector"])[:, : model.num_objects] > 0
    for row, iteration in enumerate(config["iterations"]):
        # The iteration changes nothing but what the loss makes of the same log-odds.
        again = [model._frame_loss(seen[t], truth[:, t], present, iteration) for t in (1, 2)]
        if iteration == 0:
            assert [loss.item() for loss in losses.values()] == [loss.item() for loss in again]
        total = again[0] + again[1]
        ours = [again[0].item(), again[1].item(), total.item()]
        expected = arrays[f"{kind}/losses"][row]
        assert np.allclose(ours, expected[:3], rtol=limit, atol=0)
        assert model.cross_entropy.kept(iteration) == pytest.approx(expected[3], rel=1e-6)
        if f"{kind}/grad_norms_it{iteration}" in arrays:
            model.zero_grad()
            total.backward(retain_graph=iteration == 0)
            names = config[f"{kind}_parameters"]
            assert names == [name for name, _ in model.named_parameters()]
            norms = torch.stack([p.grad.norm() for p in model.parameters()])
            recorded = arrays[f"{kind}/grad_norms_it{iteration}"]
            assert_near(norms, recorded, 1e-3 * recorded.max())
    for t in (1, 2):
        expected = arrays[f"{kind}/logits_{t}"]
        assert_near(seen[t][:, :, ::3, ::3], expected, limit * np.abs(expected).max())
        prob = seen[t].softmax(1)[:, 1:, ::3, ::3]
        assert_near(prob, arrays[f"{kind}/prob_{t}"], limit)
    counts = arrays[f"{kind}/iou_counts"].reshape(-1, 2)
    for name, (inter, union) in zip(("iou", "iou_second"), counts, strict=False):
        assert logged[name] == pytest.approx((inter + 1) / (union + 1), rel=1e-3)
    frames = torch.stack([sample["frames"] for sample in samples])
    with torch.no_grad():
        keys = model.encode(model.normalize(frames).flatten(0, 1))["key"]
    keys = keys.unflatten(0, (2, 3)).transpose(1, 2)
    expected = arrays[f"{kind}/k16"]
    assert_near(keys[:, ::8], expected, limit * np.abs(expected).max())


@pytest.mark.parametrize("name", ["two_objects", "two_objects_bootstrap", "one_object"])
def test_three_steps_of_the_recipe(name: str) -> None:
    description, arrays = load_fixture("train_stcn")
    recipe = description["config"]["runs"][name]
    cfg = load_config("stcn/stcn_stage3")
    model = load_filled(instantiate(cfg.model), description).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 231
    base = recipe["lr"]
    assert {group["lr"] for group in optimizer.param_groups} == {base}
    samples = samples_of(classes_of(recipe), recipe["selector"], description["seed"])
    parameters = dict(model.named_parameters())
    assert list(parameters) == description["config"]["parameters"]
    before = {n: p.detach().clone() for n, p in parameters.items()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    for step in range(4):
        iteration = recipe["it0"] + step
        losses, logged = losses_at(model, samples, iteration)
        total = losses["loss_frame1"] + losses["loss_frame2"]
        ours = [losses["loss_frame1"].item(), losses["loss_frame2"].item(), total.item()]
        expected = arrays[f"{name}/losses"][step]
        assert np.allclose(ours, expected[:3], rtol=3e-4, atol=0)
        assert logged["kept_pixels"] == pytest.approx(expected[3], rel=1e-6)
        if step == 3:
            break
        rate = base * (0.1 if step >= recipe["steps"][0] else 1.0)
        assert rate == pytest.approx(arrays[f"{name}/lr"][step], rel=1e-6)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        total.backward()
        norms = np.array([p.grad.norm().item() for p in parameters.values()])
        assert_close(norms, arrays[f"{name}/grad_norms"][step], 2e-2, parameters)
        optimizer.step()
    changes = {n: (p.detach() - before[n]) for n, p in parameters.items()}
    norms = np.array([change.norm().item() for change in changes.values()])
    assert_close(norms, arrays[f"{name}/change_norms"], 3e-2, parameters)
    for key, index in description["config"]["flat_index"][name].items():
        state = optimizer.state[parameters[key]]
        for what, value, limit in (
            ("change", changes[key], 2e-2),
            ("exp_avg", state["exp_avg"], 3e-2),
            ("exp_avg_sq", state["exp_avg_sq"], 3e-2),
        ):
            expected = arrays[f"{name}/{key}/{what}"]
            assert_near(value.flatten()[index], expected, limit * np.abs(expected).max())
    if f"{name}/weight_decay_probe" in arrays:
        expected = arrays[f"{name}/weight_decay_probe"]
        probe = changes["value_encoder.conv1.weight"][:, 4].flatten()[::7]
        assert_near(probe, expected, 5e-3 * np.abs(expected).max())
    for key, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[key]), f"{key} changed"


def classes_of(recipe: Mapping[str, Any]) -> np.ndarray:
    """Class maps [B, T, 64, 64] of the recorded shapes."""
    y, x = np.mgrid[0:64, 0:64]
    out = np.zeros((recipe["B"], 3, 64, 64), np.uint8)
    for b, sample in enumerate(recipe["specs"]):
        for t, shapes in enumerate(sample):
            for label, shape in enumerate(shapes, start=1):
                if shape is None:
                    continue
                kind, *n = shape
                if kind == "rect":
                    inside = (y >= n[0]) & (y < n[1]) & (x >= n[2]) & (x < n[3])
                else:
                    inside = (y - n[0]) ** 2 + (x - n[1]) ** 2 <= n[2] ** 2
                out[b, t][inside] = label
    return out


def assert_close(
    ours: np.ndarray, expected: np.ndarray, limit: float, names: Mapping[str, Any]
) -> None:
    # A shift of all keys changes no distance: this gradient is rounding alone.
    known = np.array([name != "key_proj.key_proj.bias" for name in names])
    worst = np.abs(ours / expected - 1)[known].max()
    assert worst <= limit, f"off by {worst:.3g}"


def imagenet(depth: int) -> dict[str, torch.Tensor]:
    """A file with torchvision's names, made from a rule."""
    from vss2.modeling.backbone import ResNet

    names = {name: value.shape for name, value in ResNet(depth).state_dict().items()}
    channels = 512 if depth == 18 else 2048
    return filled_state_dict({**names, "fc.weight": (1000, channels), "fc.bias": (1000,)}, 14)


@pytest.mark.parametrize("single", [True, False])
def test_imagenet_weights_start_both_encoders(tmp_path: Any, single: bool) -> None:
    files = {}
    for part, depth in (("key_encoder", 50), ("value_encoder", 18)):
        files[part] = tmp_path / f"resnet{depth}.pth"
        torch.save(imagenet(depth), files[part])
    model = build(single_object=single, value_dim=64)
    report = load_weights(model, files)
    assert report.unexpected == []
    assert report.mismatched == []
    loaded = model.state_dict()
    for name, value in torch.load(files["value_encoder"]).items():
        if name.startswith(("layer4", "fc")) or name.endswith("num_batches_tracked"):
            continue
        own = loaded[f"value_encoder.{name}"]
        assert torch.equal(own[:, :3] if name == "conv1.weight" else own, value), name
    for name, value in torch.load(files["key_encoder"]).items():
        if name.startswith(("layer4", "fc")) or name.endswith("num_batches_tracked"):
            continue
        assert torch.equal(loaded["key_encoder." + name.replace("layer1", "res2")], value), name
    extra = loaded["value_encoder.conv1.weight"][:, 3:]
    assert extra.shape[1] == (1 if single else 2)
    assert gram_error(extra) < 1e-5
    biases = [
        value
        for name, value in loaded.items()
        if name.startswith("value_encoder.")
        and name.endswith(("conv1.bias", "conv2.bias", "0.bias"))
        and ".fuser." not in name
    ]
    assert len(biases) == 15
    assert not any(bias.any() for bias in biases)


def test_one_imagenet_file_goes_to_the_encoder_of_its_depth(tmp_path: Any) -> None:
    model = build(value_dim=64)
    for depth, part in ((50, "key_encoder."), (18, "value_encoder.")):
        torch.save(imagenet(depth), tmp_path / "weights.pth")
        report = load_weights(model, tmp_path / "weights.pth")
        assert all(name.startswith(part) for name in report.loaded)
    torch.save(imagenet(34), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="neither the key encoder's"):
        load_weights(model, tmp_path / "weights.pth")


def tiny_samples(count: int = 2, objects: int = 2) -> list[dict[str, Any]]:
    classes = np.zeros((count, 3, 32, 48), np.uint8)
    classes[:, :, 4:16, 4:20] = 1
    if objects > 1:
        classes[:, :, 18:30, 20:40] = 2
    return samples_of(classes, [[1.0] * objects] * count, seed=3)


def test_every_parameter_gets_a_gradient() -> None:
    model = small().train()
    sum(model(tiny_samples()).values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_live_batch_norm_is_an_option() -> None:
    model = small(freeze_norm=False).train()
    before = model.key_encoder.bn1.running_mean.clone()
    model(tiny_samples())
    assert not torch.equal(model.key_encoder.bn1.running_mean, before)


def test_the_loss_of_an_absent_object_does_not_depend_on_its_labels() -> None:
    model = small().train()
    sample = tiny_samples(1, objects=1)[0]
    alone = model([sample])
    both = model([sample, sample])
    for name, value in alone.items():
        assert value.item() == pytest.approx(both[name].item(), rel=1e-5)


def test_mixed_precision_gives_about_the_same_losses() -> None:
    model = small().train()
    exact = model(tiny_samples())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(tiny_samples())
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        assert rough[name].item() == pytest.approx(value.item(), rel=0.05)


def test_more_objects_than_the_network_has_are_refused() -> None:
    with pytest.raises(InputError, match="1 objects at most, a sample has 2"):
        small(single_object=True).train()(tiny_samples())


def test_training_needs_sides_that_are_multiples_of_16() -> None:
    sample = tiny_samples(1)[0]
    for name in ("frames", "masks"):
        sample[name] = sample[name][..., :40]
    sample["image_size"] = (32, 40)
    with pytest.raises(InputError, match="multiples of 16"):
        small().train()([sample])
