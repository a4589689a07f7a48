from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

import vss2
from vss2.checkpoint import load_weights
from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.errors import InputError
from vss2.modeling.backbone import ResNet
from vss2.modeling.backbone.resnet_checkpoint import detectron2_names
from vss2.modeling.losses import resize_scores
from vss2.modeling.mask_session import score_chunks
from vss2.modeling.resize import best_labels

from .mask_cases import NUM_CLASSES, criterion, fixed_points, mask2former, sample
from .tiny import random_frames

CONFIGS = ("mask2former_mit_b1_vspw", "mask2former_r50_vspw", "mask2former_video_mit_b1_vspw")


# scores


@pytest.mark.parametrize("clip_length", [None, 1, 2])
def test_clips_give_scores_of_every_frame(clip_length: int | None) -> None:
    model = mask2former(clip_length=clip_length).eval()
    for count in (1, clip_length or 3):
        scores = model.predict_clip(random_frames(count, 70, 90))
        assert scores.shape == (count, NUM_CLASSES, 18, 23)
        assert scores.isfinite().all()
        assert scores.min() >= 0
        assert scores.max() <= 8  # one per query


def test_padding_is_zero_after_normalisation_and_cut_off() -> None:
    model = mask2former().eval()
    frames = random_frames(1, 50, 70)
    images = model.normalize(frames)
    padded = torch.zeros(1, 3, 64, 96)
    padded[..., :50, :70] = images
    assert model.padded_size(50, 70) == (64, 96)
    clip = [model.encode(padded)]
    expected = model.decode(clip, [0])[..., :13, :18]
    torch.testing.assert_close(model.predict_clip(frames), expected, rtol=0, atol=1e-6)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model, frames = mask2former().eval(), random_frames(3, 64, 64)
    together = model.predict_clip(frames)
    for index in range(3):
        alone = model.predict_clip(frames[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)


def test_frames_of_a_clip_see_each_other() -> None:
    model, frames = mask2former(clip_length=2).eval(), random_frames(2, 64, 64)
    together = model.predict_clip(frames)
    assert (model.predict_clip(frames[:1]) - together[:1]).abs().max() > 1e-4


def test_clips_of_other_lengths_are_refused() -> None:
    model = mask2former(clip_length=2).eval()
    for count in (0, 3):
        with pytest.raises(InputError, match=f"got {count}"):
            model.predict_clip(random_frames(count, 64, 64))
    with pytest.raises(InputError, match="got 0"):
        mask2former().eval().predict_clip(random_frames(0, 64, 64))


def test_bfloat16_autocast_stays_close() -> None:
    model, frames = mask2former().eval(), random_frames(1, 64, 64)
    exact = model.predict_clip(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.predict_clip(frames)
    assert (rough - exact).abs().max() <= 0.1 * exact.abs().max()


# sessions


def published_scores(model, frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Masks to the padded size, probabilities, sum over queries, crop, resize."""
    with torch.no_grad():
        features = model.encode(model.normalize(frames))
        clip = [
            {name: value[i : i + 1] for name, value in features.items()} for i in range(len(frames))
        ]
        found = model.predict_masks(clip, range(len(frames)))
        masks = resize_scores(found["masks"], model.padded_size(*frames.shape[-2:])).sigmoid()
        scores = torch.einsum("nqk,nqhw->nkhw", found["classes"], masks)
        return resize_scores(scores[..., : frames.shape[2], : frames.shape[3]], size)


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_a_session_answers_as_published(size: tuple[int, int]) -> None:
    model, frames = mask2former().eval(), random_frames(2, *size)
    expected = published_scores(model, frames, (45, 81))
    session = model.new_session()
    for frame, scores in zip(frames, expected, strict=True):
        found = session.step(frame, output_size=(45, 81))
        torch.testing.assert_close(found["sem_seg"], scores, rtol=0, atol=1e-5)
    session.reset()
    top = expected[0].topk(2, dim=0).values
    clear = top[0] - top[1] > 1e-5
    labels = session.step(frames[0], output_size=(45, 81), labels_only=True)["labels"]
    assert labels.dtype == torch.uint8
    assert torch.equal(labels[clear], expected[0].argmax(0).to(torch.uint8)[clear])


def test_a_session_of_clips_answers_as_its_clips() -> None:
    model, frames = mask2former(clip_length=2).eval(), random_frames(8, 64, 64)
    session = model.new_session()
    assert session.lag == 5
    answers = [session.step(frame) for frame in frames]
    answers = [a for a in answers if a is not None] + list(session.finish())
    assert [a["frame_index"] for a in answers] == list(range(8))
    for clip in ((0, 3), (1, 4), (2, 5), (6, 7)):
        expected = published_scores(model, frames[list(clip)], (64, 64))
        for frame, scores in zip(clip, expected, strict=True):
            torch.testing.assert_close(answers[frame]["sem_seg"], scores, rtol=0, atol=1e-5)


def test_a_session_goes_on_elsewhere(tmp_path: Path) -> None:
    model, frames = mask2former(clip_length=2).eval(), random_frames(8, 64, 64)
    expected = list(model.new_session().run(frames))
    first = model.new_session()
    answers = [first.step(frame) for frame in frames[:6]]
    torch.save(first.state_dict(), tmp_path / "session.pth")
    second = model.new_session()
    second.load_state_dict(torch.load(tmp_path / "session.pth"))
    answers = [a for a in answers if a is not None] + list(second.run(frames[6:]))
    for found, wanted in zip(answers, expected, strict=True):
        assert torch.equal(found["sem_seg"], wanted["sem_seg"])


def test_each_frame_is_encoded_once_and_inner_heads_are_skipped() -> None:
    model, frames = mask2former(clip_length=2).eval(), random_frames(6, 64, 64)
    encoded, classified = [], []
    head = model.sem_seg_head
    head["pixel_decoder"].register_forward_hook(lambda *_: encoded.append(1))
    head["predictor"].class_embed.register_forward_hook(lambda *_: classified.append(1))
    assert len(list(model.new_session().run(frames))) == 6
    assert len(encoded) == 6
    assert len(classified) == 3


def test_classes_in_blocks_give_all_scores() -> None:
    classes, masks = torch.rand(4, 37), torch.randn(1, 4, 5, 6)
    chunks = list(score_chunks(classes, masks, (20, 24), (18, 21), (9, 30)))
    assert [chunk.shape[1] for chunk in chunks] == [16, 16, 5]
    probability = resize_scores(masks, (20, 24)).sigmoid()[..., :18, :21]
    expected = resize_scores(torch.einsum("qk,nqhw->nkhw", classes, probability), (9, 30))
    torch.testing.assert_close(torch.cat(chunks, 1), expected, rtol=0, atol=1e-5)
    assert torch.equal(best_labels(chunks), torch.cat(chunks, 1)[0].argmax(0).to(torch.uint8))


# training


@pytest.mark.parametrize("clip_length", [None, 2])
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bf16"])
def test_every_parameter_gets_a_gradient(clip_length: int | None, amp: bool) -> None:
    model = mask2former(clip_length=clip_length).train()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        losses = model([sample(2, seed=1), sample(2, seed=2)])
    assert len(losses) == 3 * 4
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_sizes_that_are_no_multiples_of_32_train() -> None:
    losses = mask2former().train()([sample(1, size=(50, 42))])
    assert all(value.isfinite() for value in losses.values())


def test_frames_without_labels_do_not_count() -> None:
    model = mask2former().eval()
    model.criterion.points.draw = lambda name, rows, points, device: (
        torch.linspace(0, 1, 2 * points).view(points, 2).expand(rows, -1, -1)
    )
    one = sample(2)
    features = model.encode(model.normalize(one["frames"]))
    both = model.losses(features, one["sem_seg"][None], torch.tensor([[True, False]]))
    first = {name: value[:1] for name, value in features.items()}
    alone = model.losses(first, one["sem_seg"][None, :1], torch.tensor([[True]]))
    torch.testing.assert_close(both, alone)


def test_labels_that_cannot_be_learned_from_are_refused() -> None:
    one = sample(2) | {"labelled": torch.tensor([True, False])}
    with pytest.raises(InputError, match="frames are all labelled"):
        mask2former(clip_length=2).train()([one])
    one["labelled"] = torch.tensor([False, False])
    with pytest.raises(InputError, match="no labelled frame"):
        mask2former().train()([one])


def test_labels_that_are_all_ignored_train() -> None:
    one = sample()
    one["sem_seg"] = torch.full_like(one["sem_seg"], 255)
    model = mask2former().train()
    losses = model([one])
    assert losses["loss_mask"] == 0
    assert losses["loss_ce"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_weights_that_are_not_a_number_give_losses_that_can_be_skipped() -> None:
    model = mask2former().train()
    with torch.no_grad():
        model.sem_seg_head["predictor"].query_embed.weight[0] = float("nan")
    losses = model([sample()])
    assert all(value.isnan() for value in losses.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("clip_length", [None, 2])
def test_a_gpu_gives_what_the_cpu_gives(clip_length: int | None) -> None:
    samples = [sample(2, seed=1), sample(2, seed=2)]
    frames, found = random_frames(4, 64, 96), {}
    for device in ("cpu", "cuda"):
        model = mask2former(clip_length=clip_length, backbone=ResNet(18)).to(device)
        scores = torch.stack([a["sem_seg"] for a in model.eval().new_session().run(frames)])
        model.criterion.points.draw = lambda *draw: fixed_points(*draw).to(draw[-1])
        losses = model.train()(samples)
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        found[device] = scores.cpu(), {name: value.item() for name, value in losses.items()}
    torch.testing.assert_close(found["cuda"][0], found["cpu"][0], rtol=0, atol=1e-2)
    assert found["cuda"][1] == pytest.approx(found["cpu"][1], rel=1e-2)


# checkpoints


def published_state(model) -> dict[str, torch.Tensor]:
    return model.published_checkpoint(model.state_dict())["model"]


def test_published_weights_with_a_resnet_load_whole(tmp_path: Path) -> None:
    cfg = load_config("mask2former/mask2former_r50_vspw")
    torch.manual_seed(0)
    state = published_state(instantiate(cfg.model))
    assert "backbone.stem.conv1.norm.running_mean" in state
    assert "backbone.res4.5.conv3.weight" in state
    assert "sem_seg_head.pixel_decoder.transformer.encoder.layers.5.linear2.bias" in state
    assert "sem_seg_head.predictor.transformer_ffn_layers.8.norm.weight" in state
    assert state["criterion.empty_weight"][-1].item() == pytest.approx(0.1)
    torch.save({"model": state}, tmp_path / "published.pth")
    model = vss2.load("mask2former/mask2former_r50_vspw", str(tmp_path / "published.pth"))
    for name, value in published_state(model).items():
        assert torch.equal(value, state[name]), name


def test_old_names_in_a_file_of_the_model_zoo_load_whole(tmp_path: Path) -> None:
    model = mask2former()
    state = {
        name.replace("pixel_decoder.", "").replace("query_feat", "static_query"): value
        for name, value in published_state(model).items()
    }
    assert "sem_seg_head.predictor.static_query.weight" in state
    assert "sem_seg_head.transformer.level_embed" in state
    state["pixel_mean"] = torch.zeros(3, 1, 1)
    arrays = {name: value.numpy() for name, value in state.items()}
    content = {"model": arrays, "__author__": "third_party", "matching_heuristics": True}
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(content))
    other = mask2former()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    report = load_weights(other, tmp_path / "old.pkl", strict=True)
    assert report.ignored == ["pixel_mean"]
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_image_weights_fill_the_video_model() -> None:
    image, video = mask2former(), mask2former(clip_length=2)
    assert image.state_dict().keys() == video.state_dict().keys()


@pytest.mark.parametrize("kind", ["torchvision", "detectron2", "frozen"])
def test_imagenet_weights_fill_a_resnet(tmp_path: Path, kind: str) -> None:
    model = mask2former(backbone=ResNet(18, norm="FrozenBN" if kind == "frozen" else "BN"))
    state = {
        name.removeprefix("backbone."): torch.full_like(value, 0.5)
        for name, value in model.state_dict().items()
        if name.startswith("backbone.")
    }
    if kind == "detectron2":  # whose files have no counters
        state = {k: v for k, v in detectron2_names(state).items() if "num_batches" not in k}
    if kind == "frozen":  # torchvision's files have counters
        state["bn1.num_batches_tracked"] = torch.tensor(7)
    head = "stem.fc.weight" if kind == "detectron2" else "fc.weight"
    torch.save(state | {head: torch.ones(1000, 512)}, tmp_path / "r18.pth")
    report = load_weights(model, tmp_path / "r18.pth")
    assert set(report.ignored) - {"bn1.num_batches_tracked"} == {head}
    assert not report.unexpected
    assert not any(name.startswith("backbone.") for name in report.missing)
    assert all((p == 0.5).all() for p in model.backbone.parameters())


def test_an_incomplete_backbone_is_refused(tmp_path: Path) -> None:
    model = mask2former(backbone=ResNet(18))
    state = published_state(model)
    state.pop("backbone.res3.0.conv1.weight")
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(InputError, match=r"missing are backbone\.layer2\.0\.conv1\.weight"):
        load_weights(model, tmp_path / "cut.pth")


def test_weights_of_another_class_count_are_refused(tmp_path: Path) -> None:
    torch.save(mask2former(7, criterion=criterion(7)).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(InputError, match=r"class_embed\.weight \(8, 32\) in the file, \(6, 32\)"):
        load_weights(mask2former(), tmp_path / "seven.pth")
    report = load_weights(mask2former(), tmp_path / "seven.pth", allow_mismatched=True)
    assert len(report.mismatched) == 3


# configs


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_make_the_published_models(name: str) -> None:
    cfg = load_config(f"mask2former/{name}")
    with torch.device("meta"):
        model = instantiate(cfg.model)
    counts = {
        part: sum(p.numel() for p in model.get_submodule(part).parameters()) / 1e6
        for part in ("sem_seg_head.pixel_decoder", "sem_seg_head.predictor")
    }
    wanted = 6.04 if "r50" in name else 5.32
    assert counts["sem_seg_head.pixel_decoder"] == pytest.approx(wanted, abs=0.01)
    assert counts["sem_seg_head.predictor"] == pytest.approx(14.5, abs=0.05)
    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer.params)
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_kind = {
        (round(group["lr"] * 1e5), group["weight_decay"]): {names[p] for p in group["params"]}
        for group in groups
    }
    assert {lr for lr, _ in by_kind} == {1, 10}
    undecayed = by_kind[10, 0.0]
    head = "sem_seg_head."
    for parameter in ("predictor.query_feat.weight", "pixel_decoder.input_proj.0.1.bias"):
        assert head + parameter in undecayed
    for parameter in ("pixel_decoder.transformer.level_embed", "predictor.class_embed.bias"):
        assert head + parameter in by_kind[10, 0.05]
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_a_criterion_of_another_class_count_is_refused() -> None:
    with pytest.raises(InputError, match="has 5 classes, its criterion 7"):
        mask2former(criterion=criterion(7))
