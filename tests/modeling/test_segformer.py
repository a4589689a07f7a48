from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vss2
from vss2.checkpoint import load_weights
from vss2.errors import InputError
from vss2.modeling.backbone import MixTransformer
from vss2.modeling.segformer import SegFormer
from vss2.testing.fixtures import filled_state_dict, load_fixture

from .tiny import random_frames

CONFIG = "segformer/segformer_mit_b0_vspw"


def segformer(num_classes: int = 5, **options) -> SegFormer:
    return SegFormer(backbone=MixTransformer("b0"), num_classes=num_classes, **options)


def imagenet_file(path: Path) -> dict[str, torch.Tensor]:
    description, _ = load_fixture("mit_b0")
    state = filled_state_dict(description["layout"])
    head = {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    torch.save(state | head, path)
    return state


def newer_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as newer mmsegmentation releases spell them."""
    out = {}
    for name, value in state.items():
        kind, rest = name.split(".", 1)
        stage = int(kind[-1]) - 1
        if kind.startswith("patch_embed"):
            out[f"layers.{stage}.0.{rest.replace('proj.', 'projection.')}"] = value
        elif kind.startswith("norm"):
            out[f"layers.{stage}.2.{rest}"] = value
        elif ".attn.q." in name:
            key_value = state[name.replace(".q.", ".kv.")]
            leaf = name.rsplit(".", 1)[1]
            index = rest.split(".")[0]
            joined = torch.cat([value, key_value])
            out[f"layers.{stage}.1.{index}.attn.attn.in_proj_{leaf}"] = joined
        elif ".attn.kv." not in name:
            for old, new in (
                ("attn.proj.", "attn.attn.out_proj."),
                ("mlp.fc1.", "ffn.layers.0."),
                ("mlp.dwconv.dwconv.", "ffn.layers.1."),
                ("mlp.fc2.", "ffn.layers.4."),
            ):
                rest = rest.replace(old, new)
            if rest.endswith(("layers.0.weight", "layers.4.weight")):
                value = value[:, :, None, None]
            out[f"layers.{stage}.1.{rest}"] = value
    return out


def test_imagenet_weights_fill_the_backbone_whole(tmp_path: Path) -> None:
    state = imagenet_file(tmp_path / "mit_b0.pth")
    model = segformer()
    report = load_weights(model, tmp_path / "mit_b0.pth")
    assert len(report.loaded) == 176
    assert sorted(report.ignored) == ["head.bias", "head.weight"]
    assert all(name.startswith("decode_head.") for name in report.missing)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_newer_naming_gives_the_same_backbone(tmp_path: Path) -> None:
    state = imagenet_file(tmp_path / "mit_b0.pth")
    torch.save({"state_dict": newer_names(state)}, tmp_path / "newer.pth")
    model = segformer()
    load_weights(model, tmp_path / "newer.pth")
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_an_incomplete_backbone_is_refused(tmp_path: Path) -> None:
    state = imagenet_file(tmp_path / "mit_b0.pth")
    state.pop("block2.0.attn.q.weight")
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(InputError, match=r"175 of the backbone's 176 .*block2\.0\.attn\.q"):
        load_weights(segformer(), tmp_path / "cut.pth")


def test_weights_of_another_class_count_are_refused(tmp_path: Path) -> None:
    torch.save(segformer(5).state_dict(), tmp_path / "five.pth")
    with pytest.raises(InputError, match=r"linear_pred.weight \(5, 256, 1, 1\) in the file"):
        load_weights(segformer(7), tmp_path / "five.pth")


def test_load_takes_a_published_checkpoint_whole(tmp_path: Path) -> None:
    description, _ = load_fixture("segformer_bn_b0")
    state = filled_state_dict(description["layout"] | description["int_buffers"])
    # Old releases write scalars with one dimension.
    state["decode_head.linear_fuse.bn.num_batches_tracked"] = torch.tensor([7])
    path = tmp_path / "published.pth"
    torch.save({"meta": {"epoch": 1, "CLASSES": ["wall"]}, "state_dict": state}, path)
    model = vss2.load(CONFIG, str(path), device="cpu")
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name].reshape(value.shape)), name
    assert model.predict_clip(random_frames(3, 64, 64)).shape == (3, 124, 16, 16)


def test_load_refuses_weights_without_a_head(tmp_path: Path) -> None:
    imagenet_file(tmp_path / "mit_b0.pth")
    with pytest.raises(InputError, match="does not fit SegFormer whole"):
        vss2.load(CONFIG, str(tmp_path / "mit_b0.pth"))


def test_every_trained_parameter_gets_a_gradient() -> None:
    model = segformer().train()
    sample = {
        "frames": random_frames(2, 64, 64),
        "sem_seg": torch.randint(0, 5, (2, 64, 64)),
        "labelled": torch.ones(2, dtype=torch.bool),
        "image_size": (64, 64),
    }
    model([sample, sample])["loss_sem_seg"].backward()
    untrained = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert untrained == ["decode_head.conv_seg.weight", "decode_head.conv_seg.bias"]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in untrained), name


def test_frames_without_labels_do_not_count() -> None:
    model = segformer(dropout=0.0).eval()
    frames = random_frames(2, 64, 64)
    labels = torch.randint(0, 5, (1, 2, 64, 64))
    features = model.encode(model.normalize(frames))
    both = model.losses(features, labels, torch.tensor([[True, False]]))
    alone = model.losses(features[:1], labels[:, :1], torch.tensor([[True]]))
    torch.testing.assert_close(both, alone)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model = segformer().eval()
    frames = random_frames(3, 64, 96)
    together = model.predict_clip(frames)
    for index in range(3):
        alone = model.predict_clip(frames[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(33, 47), (97, 161), (32, 32)])
def test_odd_sizes_come_back_at_their_own_size(size: tuple[int, int]) -> None:
    session = segformer().eval().new_session()
    assert session.step(random_frames(1, *size)[0])["sem_seg"].shape == (5, *size)


def test_bfloat16_autocast_stays_close() -> None:
    torch.manual_seed(0)
    model = segformer().eval()
    frames = random_frames(1, 64, 64)
    exact = model.predict_clip(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.predict_clip(frames).float()
    assert (rough - exact).abs().max() <= 0.05 * exact.abs().max()


def test_unknown_size_and_norm_are_named() -> None:
    with pytest.raises(InputError, match="'b7'"):
        MixTransformer("b7")
    with pytest.raises(InputError, match="'LN2'"):
        segformer(norm="LN2")
