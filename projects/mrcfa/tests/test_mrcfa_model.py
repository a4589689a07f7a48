"""MRCFA beside parity: the affinity module against a plain form, losses, checkpoints, configs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import vss2
from vss2.checkpoint import load_weights
from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.d2.modeling import META_ARCH_REGISTRY
from vss2.errors import InputError
from vss2.modeling.backbone import MixTransformer
from vss2.modeling.losses import pixel_cross_entropy
from vss2.plugins import ProjectInfo
from vss2.projects.mrcfa import MRCFA, PROJECT
from vss2.projects.mrcfa.affinity import AffinityRefinement, CrossFrameAffinity, propagate_mean
from vss2.testing.fixtures import filled_state_dict, load_fixture

CONFIG = "mrcfa/mrcfa_mit_b0_vspw"


def build(**options) -> MRCFA:
    torch.manual_seed(0)
    return MRCFA(backbone=MixTransformer("b0"), num_classes=5, **options)


def sample(frames: int = 4, seed: int = 0, size: tuple[int, int] = (64, 96)) -> dict:
    generator = torch.Generator().manual_seed(seed)
    shape = (frames, *size)
    pixels = torch.randint(0, 256, (frames, 3, *size), generator=generator, dtype=torch.uint8)
    return {
        "frames": pixels,
        "sem_seg": torch.randint(0, 5, shape, generator=generator),
        "labelled": torch.ones(frames, dtype=torch.bool),
        "image_size": size,
    }


def published_state() -> dict[str, torch.Tensor]:
    description, _ = load_fixture("mrcfa_b0")
    return filled_state_dict(description["layout"] | description["int_buffers"])


# The affinity module


def plain_refinement(net: AffinityRefinement, images: dict[int, torch.Tensor]) -> torch.Tensor:
    """The refinement on a batch of one-channel images [M, 1, h, w], as the paper draws it."""

    def run(layers: torch.nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        for index in range(0, len(layers), 3):
            x = layers[index].conv2(x)
            norm = layers[index + 1]
            x = F.group_norm(x, 1, norm.weight, norm.bias, norm.eps).relu()
        return x

    def up(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)

    fine, middle, coarse = (
        run(net.get_submodule(f"encoder_layer{i}"), images[i]) for i in (2, 3, 4)
    )
    merged = run(net.encoder_layer4to3, up(coarse, middle) + middle)
    return run(net.encoder_layer3to2, up(merged, fine) + fine)


@pytest.mark.parametrize("layers", [1, 2])
def test_tokens_last_layout_equals_separate_images(layers: int) -> None:
    torch.manual_seed(layers)
    net = AffinityRefinement(layers)
    batch, tokens = 2, 7
    # Far from zero, as affinities of trained features are.
    images = {
        scale: (40 + 3 * torch.randn(batch, size * 2 * size, tokens))
        .transpose(1, 2)
        .unflatten(2, (size, 2 * size))
        for scale, size in ((4, 3), (3, 6), (2, 12))
    }
    ours = net(images)
    assert ours.shape == (batch, tokens, 12, 24)
    plain = plain_refinement(
        net, {s: x.flatten(0, 1).unsqueeze(1).contiguous() for s, x in images.items()}
    )
    error = (ours.flatten(0, 1) - plain[:, 0]).abs().max()
    assert error <= 1e-5 * plain.abs().max()


def test_attention_equals_the_formulas_token_by_token() -> None:
    torch.manual_seed(0)
    module = CrossFrameAffinity((8, 12, 16), keep_ratio=0.5, score_top_k=5, refinement_layers=1)
    batch, references, grid = 2, 3, (3, 4)
    channels = {2: 8, 3: 12, 4: 16}
    target = {
        i: torch.randn(batch, c, grid[0] << (4 - i), grid[1] << (4 - i))
        for i, c in channels.items()
    }
    keys = {i: torch.randn(batch, references, 12, c) for i, c in channels.items()}
    values = torch.randn(batch, references, 12, 10)
    attention = module(target, keys)
    mean = propagate_mean(attention, values)
    for b in range(batch):
        said = torch.zeros(12 * 16, 10)
        for r in range(references):
            queries = {i: module.query(i, target[i])[b] for i in channels}
            coarse = queries[4] @ keys[4][b, r].T
            scores = torch.stack([column.sort().values[-5:].sum() for column in coarse.T])
            chosen = sorted(scores.argsort(descending=True)[:6].tolist())
            assert attention.selected[b, r].tolist() == chosen
            images = {
                i: (queries[i] @ keys[i][b, r, chosen].T).T.reshape(6, 1, *target[i].shape[-2:])
                for i in channels
            }
            logits = plain_refinement(module.hpn, images).flatten(1).T
            said += logits.softmax(-1) @ values[b, r, chosen] / references
        assert (mean[b] - said).abs().max() <= 1e-5 * said.abs().max()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="refinement_layers is 1 or 2, got 3"):
        build(refinement_layers=3)
    with pytest.raises(InputError, match="keep_ratio"):
        build(keep_ratio=0.0)
    with pytest.raises(InputError, match="score_top_k"):
        build(score_top_k=0)


# Training


def test_every_trained_parameter_gets_a_gradient() -> None:
    model = build(refinement_layers=2).train()
    losses = model([sample(seed=0), sample(seed=1)])
    assert set(losses) == {"loss_frames", "loss_clip"}
    sum(losses.values()).backward()
    untrained = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert untrained == ["decode_head.conv_seg.weight", "decode_head.conv_seg.bias"]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in untrained), name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def test_the_first_loss_counts_labelled_frames_alone() -> None:
    model = build().eval()
    clip = sample()
    features = model.encode(model.normalize(clip["frames"]))
    labels = clip["sem_seg"][None]
    sparse = model.losses(features, labels, torch.tensor([[False, False, False, True]]))
    scores = model.decode_head.predict(features["fused"][-1:])
    expected = 0.5 * pixel_cross_entropy(scores, labels[0, -1:])
    torch.testing.assert_close(sparse["loss_frames"], expected)
    whole = model.losses(features, labels, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(sparse["loss_clip"], whole["loss_clip"])
    assert (sparse["loss_frames"] - whole["loss_frames"]).abs() > 1e-4


def test_ignored_pixels_stay_in_the_denominator() -> None:
    model = build().eval()
    clip = sample()
    features = model.encode(model.normalize(clip["frames"]))
    labels, labelled = clip["sem_seg"][None], torch.ones(1, 4, dtype=torch.bool)
    void = labels.clone()
    void[..., 48:] = 255
    left = model.losses(features, void, labelled)
    void = labels.clone()
    void[..., :48] = 255
    right = model.losses(features, void, labelled)
    for name, whole in model.losses(features, labels, labelled).items():
        torch.testing.assert_close(left[name] + right[name], whole)


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    model = build().eval()
    clips = [sample(seed=seed) for seed in range(2)]
    labelled = torch.ones(1, 4, dtype=torch.bool)
    pixels = torch.stack([clip["frames"] for clip in clips])
    labels = torch.stack([clip["sem_seg"] for clip in clips])
    together = model.losses(
        model.encode(model.normalize(pixels.flatten(0, 1))), labels, labelled.repeat(2, 1)
    )
    alone = [
        model.losses(model.encode(model.normalize(pixels[i])), labels[i : i + 1], labelled)
        for i in range(2)
    ]
    for name, value in together.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)


def test_clips_that_do_not_fit_are_named() -> None:
    model = build().train()
    with pytest.raises(InputError, match=r"clips of 4 frames.*got 2"):
        model([sample(frames=2)])
    with pytest.raises(InputError, match="multiples of 32"):
        model([sample(size=(64, 80))])
    with pytest.raises(InputError, match="too small"):
        model([sample(size=(32, 64))])
    clip = sample()
    clip["labelled"][-1] = False
    with pytest.raises(InputError, match="whose last frame"):
        model([clip])


def test_bfloat16_autocast_stays_close() -> None:
    model = build(keep_ratio=1.0).eval()  # all tokens, so that none is chosen otherwise
    frames = sample()["frames"]
    exact = model.predict_clip(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.predict_clip(frames).float()
    assert (rough - exact).abs().max() <= 0.05 * exact.abs().max()


# Checkpoints


def test_a_published_checkpoint_loads_whole(tmp_path: Path) -> None:
    state = published_state()
    # Old releases write scalars with one dimension.
    state["decode_head.linear_fuse.bn.num_batches_tracked"] = torch.tensor([7])
    meta = {"CLASSES": ["wall"], "PALETTE": [[1, 2, 3]], "config": "model = dict()"}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "published.pth")
    model = vss2.load(CONFIG, str(tmp_path / "published.pth"), device="cpu")
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name].reshape(value.shape)), name
    report = load_weights(model, tmp_path / "published.pth", strict=True)
    assert len(report.loaded) == len(state)
    assert not report.missing + report.unexpected + report.ignored
    written = model.published_checkpoint(model.state_dict())["state_dict"]
    assert written.keys() == state.keys()


def test_imagenet_weights_fill_the_backbone(tmp_path: Path) -> None:
    prefix = "backbone."
    state = {n[len(prefix) :]: v for n, v in published_state().items() if n.startswith(prefix)}
    extra = {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    torch.save(state | extra, tmp_path / "mit_b0.pth")
    model = build()
    report = load_weights(model, tmp_path / "mit_b0.pth")
    assert len(report.loaded) == 176
    assert sorted(report.ignored) == ["head.bias", "head.weight"]
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_an_incomplete_backbone_is_refused(tmp_path: Path) -> None:
    state = published_state()
    state.pop("backbone.block2.0.attn.q.weight")
    torch.save(state, tmp_path / "cut.pth")
    model = instantiate(load_config(CONFIG).model)
    with pytest.raises(InputError, match=r"175 of the backbone's 176 .*block2\.0\.attn\.q"):
        load_weights(model, tmp_path / "cut.pth")


def test_weights_of_another_refinement_net_or_window_are_named(tmp_path: Path) -> None:
    torch.save(build(refinement_layers=2).state_dict(), tmp_path / "two.pth")
    with pytest.raises(InputError, match=r"set model\.refinement_layers=2"):
        load_weights(build(), tmp_path / "two.pth")
    torch.save(build(window=(-2, -1, 0)).state_dict(), tmp_path / "short.pth")
    with pytest.raises(InputError, match=r"with 2 references, the model's has 3"):
        load_weights(build(), tmp_path / "short.pth")


# Configs and the project


@pytest.mark.parametrize(
    ("size", "keep_ratio", "layers"),
    [("b0", 0.8, 1), ("b1", 0.5, 2), ("b2", 0.5, 1), ("b5", 0.5, 1)],
)
def test_configs_state_the_published_recipe(size: str, keep_ratio: float, layers: int) -> None:
    cfg = load_config(f"mrcfa/mrcfa_mit_{size}_vspw")
    assert cfg.model.backbone.size == size
    assert (cfg.model.keep_ratio, cfg.model.refinement_layers) == (keep_ratio, layers)
    assert (cfg.model.score_top_k, cfg.model.frame_loss_weight) == (5, 0.5)
    assert cfg.train.init_checkpoint == f"mit_{size}.pth"
    assert size in cfg.train.output_dir
    assert (cfg.train.max_iter, cfg.dataloader.train.total_batch_size) == (160000, 8)
    assert cfg.train.checkpointer.period == 4000
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (6e-5, 0.01)
    assert cfg.optimizer.params.multipliers == {
        "head": {"lr_mult": 10.0},
        "norm": {"decay_mult": 0.0},
    }
    assert list(cfg.dataloader.train.mapper.clip_sampler.offsets) == [-9, -6, -3, 0]


def test_the_data_follow_the_window_of_the_model() -> None:
    cfg = load_config("mrcfa/mrcfa_toy")
    vss2.config.apply_overrides(cfg, ["model.window=[-4,-2,0]"])
    sampler = instantiate(cfg.dataloader.train.mapper).clip_sampler
    assert sampler.offsets == (-4, -2, 0)
    model = instantiate(cfg.model)
    assert model.window.offsets == (-4, -2, 0)
    assert model.window.start_table == {}
    assert model.decode_head.num_references == 2


def test_the_cityscapes_config_trains_on_sparse_labels() -> None:
    cfg = load_config("mrcfa/mrcfa_mit_b1_cityscapes")
    assert (cfg.model.num_classes, cfg.model.refinement_layers) == (19, 2)
    assert cfg.dataloader.train.mapper.num_classes == 19
    assert cfg.lr_multiplier.max_iter == cfg.train.max_iter
    sampler = instantiate(cfg.dataloader.train.mapper.clip_sampler)
    assert sampler.offsets == (-9, -6, -3, 0)
    cfg.model.backbone.size = "b0"
    model = instantiate(cfg.model).train()
    clip = sample()
    clip["labelled"][:-1] = False
    clip["sem_seg"][:-1] = 255
    losses = model([clip])
    assert all(loss.isfinite() for loss in losses.values())


def test_the_toy_config_trains_at_its_own_size() -> None:
    cfg = load_config("mrcfa/mrcfa_toy")
    height, width = cfg.dataloader.train.mapper.pad_size
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    clip = sample(size=(height, width))
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    totals = []
    for _ in range(4):
        optimizer.zero_grad()
        total = sum(model([clip]).values())
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0]


def test_the_project_introduces_itself_without_its_networks() -> None:
    assert isinstance(PROJECT, ProjectInfo)
    assert PROJECT.name == "MRCFA"
    assert META_ARCH_REGISTRY.get("MRCFA") is MRCFA
    script = "import sys, vss2.projects.mrcfa as p; p.PROJECT; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(vss2.__file__).parents[1])
    with pytest.raises(AttributeError, match="MRCFB"):
        vss2.projects.mrcfa.MRCFB  # noqa: B018
