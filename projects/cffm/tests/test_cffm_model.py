"""Training, losses and checkpoints of CFFM and CFFM++."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cffm_cases import clip_of, fixture_model, samples_of, tensor_layout, tiny_model

import vss2
from vss2.checkpoint import load_weights
from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.errors import InputError
from vss2.modeling.losses import pixel_cross_entropy, resize_scores
from vss2.projects.cffm.checkpoint import index_constants
from vss2.testing.fixtures import filled_state_dict, load_fixture

UNUSED = ("conv_seg.", "decoder_swin.blocks.0.attn.proj.", "attn.relative_position_bias_table")


def tiny_samples(count: int = 2, plus_plus: bool = False) -> list[dict[str, Any]]:
    prototypes = [torch.randn(6, 16) for _ in range(count)] if plus_plus else None
    samples = samples_of([clip_of(i, 64, 64) for i in range(count)], prototypes)
    for sample in samples:
        sample["sem_seg"] %= 5
    return samples


def effective(model: torch.nn.Module) -> set[str]:
    """Names of the parameters that CFFM++ trains."""
    names = {n for n, _ in model.named_parameters() if "linear_pred3" in n or "decoder_swin" in n}
    return {n for n in names if not any(unused in n for unused in UNUSED)}


def test_every_trained_parameter_gets_a_gradient() -> None:
    model = tiny_model().train()
    sum(model(tiny_samples()).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("conv_seg" not in name), name
        assert (parameter.grad is None) == ("conv_seg" in name), name


def test_plus_plus_trains_its_own_tensors_alone() -> None:
    model = tiny_model(plus_plus=True).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    sum(model(tiny_samples(plus_plus=True)).values()).backward()
    trained = effective(model)
    assert len(trained) == 16
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in trained), name
        assert (parameter.grad is None) == (name not in trained), name
    gradient = model.decode_head.decoder_swin.blocks[0].attn.qkv.weight.grad
    assert gradient[:16].abs().max() > 0
    assert gradient[16:].abs().max() == 0
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("drop_path", [True, False])
def test_drop_path_of_the_frozen_backbone_is_a_switch(drop_path: bool) -> None:
    model = tiny_model(plus_plus=True, drop_path=drop_path).train()
    assert model.backbone.training == drop_path
    assert not model.decode_head.linear_fuse.training
    assert model.decode_head.dropout.training
    images = torch.randn(1, 3, 64, 64).expand(16, 3, 64, 64)
    features = model.encode(images)["stride8"]
    assert torch.equal(features[0], features[-1]) != drop_path or not drop_path
    assert (features.std(0).max() > 1e-3) == drop_path


def test_groups_of_the_published_recipe_by_name() -> None:
    cfg = load_config("cffm/cffm_mit_b1_vspw")
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    names = {id(p): name for name, p in model.named_parameters()}
    seen = {}
    for group in instantiate(cfg.optimizer.params):
        key = (round(group["lr"] / 6e-5), group["weight_decay"])
        seen[key] = {names[id(p)] for p in group["params"]}
    assert {key: len(value) for key, value in seen.items()} == {
        (1, 0.01): 116,
        (1, 0.0): 60,
        (10, 0.01): 67,  # 69 without the two tensors that nothing uses
    }
    head = seen[10, 0.01]
    assert all(name.startswith("decode_head.") for name in head)
    # "head" comes before "norm": norms of the head keep their decay.
    assert "decode_head.decoder_focal.blocks.1.norm2.weight" in head
    assert "decode_head.linear_fuse.bn.weight" in head
    assert all("norm" in name for name in seen[1, 0.0])
    assert "backbone.block1.0.attn.norm.bias" in seen[1, 0.0]


@pytest.mark.parametrize(("size", "depth"), [("b0", 1), ("b1", 2), ("b2", 2), ("b5", 4)])
@pytest.mark.parametrize(
    ("method", "steps", "rate", "head"),
    [("cffm", 160000, 6e-5, 10.0), ("cffmpp", 40000, 2e-4, 1.0)],
)
def test_configs_state_the_published_recipe(
    method: str, steps: int, rate: float, head: float, size: str, depth: int
) -> None:
    cfg = load_config(f"cffm/{method}_mit_{size}_vspw")
    assert (cfg.model.backbone.size, cfg.model.focal_depth) == (size, depth)
    assert size in cfg.train.output_dir
    assert size in cfg.train.init_checkpoint
    # In CFFM++ it is a number to watch, as published, and no setting.
    assert cfg.model.get("frame_loss_weight") == (0.5 if method == "cffm" else None)
    assert (cfg.train.max_iter, cfg.lr_multiplier.max_iter) == (steps, steps)
    assert cfg.dataloader.train.total_batch_size == 8
    assert cfg.train.checkpointer.period == 4000
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (rate, 0.01)
    assert cfg.optimizer.params.multipliers == {
        "head": {"lr_mult": head},
        "norm": {"decay_mult": 0.0},
    }
    assert list(cfg.dataloader.train.mapper.clip_sampler.offsets) == [-9, -6, -3, 0]


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_frames_without_labels_do_not_count(weight: float) -> None:
    model = tiny_model(frame_loss_weight=weight)
    frames, labels = clip_of(0, 64, 64), torch.randint(0, 5, (1, 4, 64, 64))
    features = model.encode(model.normalize(frames))
    labelled = torch.tensor([[False, True, False, True]])
    losses = model.losses(features, labels, labelled)
    scores = model.decode_head.predict(features["stride4"])[[1, 3]]
    expected = weight * pixel_cross_entropy(scores, labels[0, [1, 3]])
    torch.testing.assert_close(losses["loss_frames"], expected)
    expected = pixel_cross_entropy(model.predict_clip(frames), labels[:, -1])
    torch.testing.assert_close(losses["loss_target"], expected)
    with pytest.raises(InputError, match="last frame is labelled"):
        model.losses(features, labels, torch.tensor([[True, True, True, False]]))
    with pytest.raises(InputError, match="clips of 4 frames, got 2"):
        model.losses(features, labels[:, :2], torch.ones(1, 2, dtype=torch.bool))


def test_prototypes_weigh_half() -> None:
    model = tiny_model(plus_plus=True)
    frames, prototypes = clip_of(0, 64, 64), torch.randn(6, 16)
    with torch.no_grad():
        target = model.encode(model.normalize(frames[3:]))["stride8"]
        third = model.decode_head.compare(target, model.prototype_keys(prototypes[None]))
        both = model.predict_clip(frames, prototypes=prototypes)
        third = resize_scores(third, both.shape[-2:])
        model.decode_head.linear_pred3.weight.zero_()
        model.decode_head.linear_pred3.bias.zero_()
        second = model.predict_clip(frames, prototypes=prototypes)
    torch.testing.assert_close(both, second + 0.5 * third)


def test_samples_need_equally_many_prototypes() -> None:
    model = tiny_model(plus_plus=True).train()
    samples = tiny_samples(plus_plus=True)
    samples[1]["prototypes"] = torch.randn(5, 16)
    with pytest.raises(InputError, match=r"equally many prototypes, got \[5, 6\]"):
        model(samples)
    del samples[1]["prototypes"]
    with pytest.raises(InputError, match="needs the prototypes"):
        model(samples)


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    model = tiny_model()
    samples = tiny_samples()
    features = [model.encode(model.normalize(sample["frames"])) for sample in samples]
    labels = torch.stack([sample["sem_seg"] for sample in samples])
    alone = [
        model.losses(f, label[None], torch.ones(1, 4, dtype=torch.bool))
        for f, label in zip(features, labels, strict=True)
    ]
    both = {k: torch.cat([f[k] for f in features]) for k in features[0]}
    together = model.losses(both, labels, torch.ones(2, 4, dtype=torch.bool))
    for name, value in together.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)


def test_bfloat16_autocast_stays_close() -> None:
    for plus_plus, extra in ((False, {}), (True, {"prototypes": torch.randn(6, 16)})):
        model = tiny_model(plus_plus=plus_plus)
        frames = clip_of(0, 64, 96)
        exact = model.predict_clip(frames, **extra)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model.predict_clip(frames, **extra).float()
        assert (rough - exact).abs().max() <= 0.1 * exact.abs().max()


def test_a_window_has_three_references() -> None:
    with pytest.raises(InputError, match=r"3 references .* \(-3, 0\)"):
        tiny_model(window=(-3, 0))


def published_file(fixture: str, path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint in the published layout, index buffers included."""
    description, _ = load_fixture(fixture)
    state = filled_state_dict(tensor_layout(description), description["seed"])
    constants = index_constants()
    for name, shape in description["int_buffers"].items():
        if "num_batches" not in name:
            state[name] = constants[name.rsplit(".", 1)[1]].clone()
            assert list(state[name].shape) == shape
    torch.save({"meta": {"epoch": 1, "CLASSES": ("wall",)}, "state_dict": state}, path)
    return state


@pytest.mark.parametrize(
    ("fixture", "config"),
    [("cffm_b0", "cffm_mit_b0_vspw"), ("cffmpp_b0", "cffmpp_mit_b0_vspw")],
)
def test_a_published_checkpoint_loads_whole(fixture: str, config: str, tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    state = published_file(fixture, path)
    model = vss2.load(f"cffm/{config}", str(path), device="cpu")
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    report = load_weights(model, path)
    assert set(report.ignored) == state.keys() - model.state_dict().keys()
    assert all("relative_position_index" in n or "valid_ind" in n for n in report.ignored)
    assert (report.missing, report.unexpected) == ([], [])
    written = model.published_checkpoint(model.state_dict())["state_dict"]
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_index_buffers_of_another_kind_are_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "other.pth"
    state = published_file("cffm_b0", path)
    model = fixture_model(load_fixture("cffm_b0")[0])
    name = "decode_head.decoder_focal.blocks.0.attn.relative_position_index_clips_1"
    state[name] += 1
    torch.save(state, path)
    assert name in load_weights(model, path).ignored
    assert "index constant of other values" in caplog.text
    state[name] = state[name][:, :9]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"clips_1 .*\(49, 9\).*\(49, 25\)"):
        load_weights(model, path)


def test_plus_plus_starts_from_a_cffm_and_from_nothing_less(tmp_path: Path) -> None:
    published_file("cffm_b0", tmp_path / "cffm.pth")
    model = instantiate(load_config("cffm/cffmpp_mit_b0_vspw").model)
    report = load_weights(model, tmp_path / "cffm.pth")
    assert effective(model) <= set(report.missing)
    assert all("linear_pred3" in n or "decoder_swin" in n for n in report.missing)
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in model.state_dict().items()
        if name.startswith("backbone.")
    }
    torch.save(backbone, tmp_path / "mit_b0.pth")
    with pytest.raises(InputError, match="on top of a CFFM checkpoint"):
        load_weights(model, tmp_path / "mit_b0.pth")
    with pytest.raises(InputError, match="does not fit"):
        vss2.load("cffm/cffmpp_mit_b0_vspw", str(tmp_path / "cffm.pth"))
