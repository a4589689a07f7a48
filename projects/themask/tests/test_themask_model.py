"""Both stages as models: training, frozen parts, the step between stages, configs, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from themask_cases import NUM_CLASSES, frames_of, samples_of, stage1, stage2, tiny_criterion
from themask_points import RecordedPoints

import vss2
from vss2.checkpoint import load_weights
from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.d2.utils import EventStorage
from vss2.data.mappers import ClipTrainMapper
from vss2.errors import InputError
from vss2.modeling.backbone import MixTransformer
from vss2.projects.themask import PROJECT, THEMask
from vss2.projects.themask.criterion import KINDS
from vss2.projects.themask.mapper import LabelledClipTrainMapper
from vss2.projects.themask.matching import TwoRoundMatcher
from vss2.testing.training_steps import silence_dropout

HEAD = "decode_head.predictor."
PLAIN = {"loss_ce", "loss_mask", "loss_dice"}


def losses_at(model: Any, iteration: int) -> dict[str, torch.Tensor]:
    with EventStorage(iteration):
        return model(samples_of(2, 1))


def kinds(losses: dict[str, torch.Tensor]) -> set[str]:
    """Names of the losses of the final prediction."""
    return {name for name in losses if not any(part.isdigit() for part in name.split("_"))}


# Training


@pytest.mark.parametrize("build", [stage1, stage2])
def test_every_trained_parameter_gets_a_gradient(build: Any) -> None:
    options = {} if build is stage1 else {"freeze_encoder": False}
    model = build(**options).train()
    losses = model(samples_of(2, 1 if build is stage1 else 2))
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert "conv_seg" in name or "reference_points" in name
            assert parameter.grad is None


def test_two_rounds_begin_after_the_warm_up_wherever_a_run_starts() -> None:
    model = stage1(warmup_iters=30).train()
    for iteration, expected in ((0, PLAIN), (29, PLAIN), (30, set(KINDS)), (1000, set(KINDS))):
        losses = losses_at(model, iteration)
        assert kinds(losses) == expected
        assert len(losses) == 5 * len(expected)
    assert kinds(model(samples_of(2, 1))) == PLAIN
    never = stage1(warmup_iters=None).train()
    assert kinds(losses_at(never, 10**6)) == PLAIN


def test_only_the_predictor_is_trained_in_stage_2() -> None:
    model = stage2().train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(HEAD) and "reference_points" not in name
    }
    assert all(module.training for module in model.modules())
    losses = model(samples_of(2, 2))
    assert kinds(losses) == {*KINDS, *(f"{key}_aux" for key in KINDS)}
    assert len(losses) == 2 * 5 * len(KINDS)


@pytest.mark.parametrize(("build", "frames"), [(stage1, 1), (stage1, 3), (stage2, 1), (stage2, 3)])
def test_clips_of_a_batch_do_not_see_each_other(build: Any, frames: int) -> None:
    model = build(clip_length=3)
    clips = [frames_of(frames, seed) for seed in (1, 2)]
    with torch.no_grad():
        features = model.encode(model.normalize(torch.cat(clips)))
        extra = [features["queries"]] if "queries" in features else []
        found = model.decode_head.predictor(
            features["multi_scale"], features["mask_features"], *extra, num_frames=frames
        )
        masks = (found.video if extra else found)[-1].masks
        for number, clip in enumerate(clips):
            alone = model.encode(model.normalize(clip))
            extra = [alone["queries"]] if "queries" in alone else []
            own = model.decode_head.predictor(
                alone["multi_scale"], alone["mask_features"], *extra, num_frames=frames
            )
            expected = (own.video if extra else own)[-1].masks[0]
            torch.testing.assert_close(masks[number], expected, rtol=0, atol=1e-4)


def test_the_other_frames_of_a_clip_count() -> None:
    for model in (stage1(clip_length=2), stage2()):
        clip = frames_of(2, seed=3)
        changed = clip.clone()
        changed[1] = clip[1].flip(-1)
        difference = (model.predict_clip(changed)[0] - model.predict_clip(clip)[0]).abs().max()
        assert difference > 1e-3


@pytest.mark.parametrize("build", [stage1, stage2])
def test_bfloat16_autocast_stays_close(build: Any) -> None:
    model, frames = build(), frames_of(1)
    expected = model.predict_clip(frames)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.predict_clip(frames)
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(samples_of(2, 1))
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("build", [stage1, stage2])
def test_a_gpu_gives_what_the_cpu_gives(build: Any) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        model = build(clip_length=2).to(device)
        scores = model.predict_clip(frames_of(2)).cpu()
        points = RecordedPoints(0)
        model.decode_head.criterion.points.draw = points
        silence_dropout(model)
        losses = model(samples_of(2, 1))
        torch.stack(list(losses.values())).sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        found[device] = scores, {name: value.item() for name, value in losses.items()}
    torch.testing.assert_close(found["cuda"][0], found["cpu"][0], rtol=0, atol=1e-2)
    assert found["cuda"][1] == pytest.approx(found["cpu"][1], rel=2e-2)


# From one stage to the next


@pytest.fixture(scope="module")
def stage1_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stage1") / "stage1.pth"
    torch.save({"state_dict": stage1().state_dict(), "meta": {"CLASSES": ["a"]}}, path)
    return path


def test_the_published_start_leaves_norms_and_frame_heads_random(stage1_file: Path) -> None:
    model = stage2()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, stage1_file)
    new = ("decoder_norm1.", "decoder_norm2.", "class_embed_aux.", "mask_embed_aux.", "deformabel")
    assert {
        name for name in report.missing if not name.startswith(tuple(HEAD + n for n in new))
    } == (set())
    assert len(report.missing) == 2 + 2 + 2 + 6 + 38
    assert report.ignored == [f"{HEAD}decoder_norm.{kind}" for kind in ("weight", "bias")]
    assert report.unexpected == []
    source = stage1().state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in report.missing else source[name]), name


def test_the_copied_start_keeps_what_stage_1_has_learned(stage1_file: Path) -> None:
    model = stage2(stage1_start="copied")
    report = load_weights(model, stage1_file)
    assert all("deformabel" in name for name in report.missing)
    assert (report.ignored, report.unexpected) == ([], [])
    source, state = stage1().state_dict(), model.state_dict()
    for twin, of in (("decoder_norm1", "decoder_norm"), ("decoder_norm2", "decoder_norm")):
        assert torch.equal(state[f"{HEAD}{twin}.weight"], source[f"{HEAD}{of}.weight"])
    for layer in ("class_embed", "mask_embed.layers.0", "mask_embed.layers.2"):
        twin = layer.replace("_embed", "_embed_aux")
        for name in (layer, twin):
            assert torch.equal(state[f"{HEAD}{name}.weight"], source[f"{HEAD}{layer}.weight"])


def test_weights_that_leave_a_frozen_part_random_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mit_b0.pth"
    torch.save(MixTransformer("b0").state_dict(), path)
    with pytest.raises(InputError, match="on top of a stage-1 checkpoint"):
        load_weights(stage2(), path)
    report = load_weights(stage2(freeze_encoder=False), path)
    assert len(report.loaded) == 176
    assert len(load_weights(stage1(), path).loaded) == 176


def test_a_half_backbone_is_refused(tmp_path: Path) -> None:
    state = {k: v for k, v in stage1().state_dict().items() if "block3" not in k}
    torch.save({"state_dict": state}, tmp_path / "half.pth")
    with pytest.raises(InputError, match=r"fill .* of the backbone's 176 tensors"):
        load_weights(stage1(), tmp_path / "half.pth")


def test_a_checkpoint_of_other_classes_is_named(stage1_file: Path) -> None:
    for model in (stage1(num_classes=7), stage2(num_classes=7)):
        with pytest.raises(
            InputError, match=r"class_embed.weight \(6, 32\) in the file, \(8, 32\)"
        ):
            load_weights(model, stage1_file)
        report = load_weights(model, stage1_file, allow_mismatched=True)
        assert {shapes[0].split(".")[-2] for shapes in report.mismatched} == {
            "conv_seg",
            "class_embed",
            "criterion",
        }


@pytest.mark.parametrize("stage", ["themask_1f_b0", "themask_b0"])
def test_a_published_checkpoint_loads_whole(stage: str, tmp_path: Path) -> None:
    config = stage.replace("_b0", "_mit_b0_vspw")
    source = instantiate(load_config(f"themask/{config}").model)
    path = tmp_path / "published.pth"
    torch.save(source.published_checkpoint(source.state_dict()), path)
    model: Any = vss2.load(f"themask/{config}", str(path), device="cpu")
    state = source.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# Configs


@pytest.mark.parametrize("size", ["b0", "b1", "b2", "b5"])
def test_configs_state_the_published_recipe(size: str) -> None:
    millions = {"b0": (23.0, 26.2), "b1": (33.0, 36.2), "b2": (44.0, 47.2), "b5": (101.3, 104.5)}
    for stage, (name, frames, iterations) in enumerate(
        (("themask_1f", [0], 160000), ("themask", [-3, 0], 12000))
    ):
        cfg = load_config(f"themask/{name}_mit_{size}_vspw")
        assert cfg.dataloader.train.mapper.clip_sampler.offsets == frames
        assert cfg.dataloader.train.total_batch_size == 8
        assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-4, 0.05)
        assert cfg.lr_multiplier.max_iter == cfg.train.max_iter == iterations
        assert cfg.train.init_checkpoint == (
            "" if stage else "mit_"
        ) + cfg.train.init_checkpoint.removeprefix("mit_")
        assert cfg.train.output_dir.endswith(f"{name}_mit_{size}_vspw")
        with torch.device("meta"):
            model = instantiate(cfg.model)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions[size][stage]
        assert (model.window.lag, model.window.lookback) == ((5, 3) if stage else (0, 0))


@pytest.mark.parametrize("name", ["themask_1f_toy", "themask_toy"])
def test_toy_configs_fit_each_other(name: str) -> None:
    cfg = load_config(f"themask/{name}")
    model = instantiate(cfg.model)
    assert 2 * model.num_classes <= cfg.model.num_queries
    loader = iter(instantiate(load_config(f"themask/{name}").dataloader.train.mapper).augmentations)
    assert len(list(loader)) == 4
    samples = samples_of(2, 1 if "1f" in name else 2)
    losses = model.train()(samples)
    assert all(value.isfinite() for value in losses.values())


# Bad input


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="stage1_start is one of"):
        stage2(stage1_start="better")
    with pytest.raises(InputError, match="clip_length must be at least 1"):
        stage2(clip_length=0)
    with pytest.raises(InputError, match="made for 5 classes, the model for 7"):
        THEMask(backbone=MixTransformer("b0"), num_classes=7, criterion=tiny_criterion("full"))
    with pytest.raises(InputError, match="second_cost is one of"):
        TwoRoundMatcher("dice")


@pytest.mark.parametrize("build", [stage1, stage2])
def test_clips_with_frames_without_labels_are_refused(build: Any) -> None:
    model = build().train()
    samples = samples_of(2, 2)
    samples[1]["labelled"][0] = False
    with pytest.raises(InputError, match="got 1 of 4 frames without labels"):
        model(samples)


def test_more_classes_than_half_the_queries_are_refused_in_training() -> None:
    model = stage2(num_queries=6).train()
    with pytest.raises(InputError, match=r"model\.num_queries to at least 8"):
        model(samples_of(1, 2))


@pytest.mark.parametrize("build", [stage1, stage2])
def test_a_batch_whose_labels_are_all_ignored_trains(build: Any) -> None:
    model = build().train()
    samples = samples_of(2, 2)
    for sample in samples:
        sample["sem_seg"][:] = 255
    losses = model(samples)
    torch.stack(list(losses.values())).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_clips_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(InputError, match="1 or 2 frames, got 3"):
        stage2().predict_clip(frames_of(3))
    assert len(stage2(clip_length=4).predict_clip(frames_of(3))) == 3


def test_clips_without_any_label_are_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    mapper = object.__new__(LabelledClipTrainMapper)
    sample = samples_of(1, 2)[0]
    monkeypatch.setattr(ClipTrainMapper, "__call__", lambda *_: sample)
    assert mapper({}, np.random.default_rng(0)) is sample
    sample["sem_seg"][:] = 255
    assert mapper({}, np.random.default_rng(0)) is None


def test_the_project_introduces_itself() -> None:
    assert PROJECT.name == "THE-Mask"
    assert stage1().num_classes == NUM_CLASSES
