"""timm models as backbones; nothing is downloaded."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from vss2.checkpoint import load_weights
from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.d2.modeling import BACKBONE_REGISTRY
from vss2.errors import InputError, InputFileError
from vss2.modeling.backbone import TimmBackbone
from vss2.modeling.segformer import SegFormer

SIZE = (64, 96)
MODELS = {
    "resnet18": {},
    "convnext_atto": {},
    "mobilenetv3_small_100": {},
    "regnetx_002": {},
    "pvt_v2_b0": {},
    "test_efficientnet": {},
    "swin_tiny_patch4_window7_224": {"img_size": SIZE, "depths": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("name", MODELS)
def test_maps_come_at_four_strides(name):
    backbone = TimmBackbone(name, options=MODELS[name]).eval()
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    maps = backbone(images)
    shapes = backbone.output_shape()
    assert list(maps) == list(shapes) == ["stage1", "stage2", "stage3", "stage4"]
    for stage, stride in zip(maps, (4, 8, 16, 32), strict=True):
        assert shapes[stage].stride == stride
        expected = (2, shapes[stage].channels, SIZE[0] // stride, SIZE[1] // stride)
        assert tuple(maps[stage].shape) == expected
    sum(feature.square().mean() for feature in maps.values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


def test_it_is_in_the_registry():
    assert BACKBONE_REGISTRY.get("TimmBackbone") is TimmBackbone


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet"])
def test_maps_are_those_of_timm_in_its_own_normalisation(name):
    """Both families take mean and deviation 0.5; resnet has a map at stride 2 that is left out."""
    torch.manual_seed(0)
    backbone = TimmBackbone(name).eval()
    rgb = torch.rand(1, 3, *SIZE)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (rgb - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        ours = list(backbone(images).values())
        theirs = backbone.net((rgb - 0.5) / 0.5)[-4:]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_the_whole_model_fills_the_backbone(name, suffix, tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model(name).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(whole.state_dict(), path)
    else:
        save_file(whole.state_dict(), path)
    images = torch.rand(1, 3, *SIZE)
    backbone = TimmBackbone(name, checkpoint=str(path)).eval()
    model = SegFormer(backbone=TimmBackbone(name), num_classes=3, embed_dim=8).eval()
    report = load_weights(model, path)
    # Not every part of a whole model makes maps: its classifier does not.
    assert report.ignored
    assert all(name.startswith("decode_head.") for name in report.missing)
    with torch.no_grad():
        ours, loaded = backbone(images), model.backbone(images)
        theirs = whole.forward_intermediates(
            images if not backbone._renormalizes else images * backbone._gain + backbone._bias,
            intermediates_only=True,
        )
    torch.testing.assert_close(ours["stage4"], loaded["stage4"])
    torch.testing.assert_close(ours["stage4"], theirs[-1], atol=1e-5, rtol=1e-4)


def test_a_checkpoint_of_the_whole_segformer_loads_as_any_other(tmp_path):
    models = [
        SegFormer(backbone=TimmBackbone("test_convnext"), num_classes=3, embed_dim=8)
        for _ in range(2)
    ]
    torch.save({"model": models[0].state_dict()}, tmp_path / "model.pth")
    report = load_weights(models[1], tmp_path / "model.pth")
    assert not report.missing
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_unknown_names_get_close_matches():
    with pytest.raises(InputError, match=r"no model 'resnet_18'. Did you mean .*'resnet18'"):
        TimmBackbone("resnet_18")


def test_a_model_without_the_strides_is_refused_with_what_it_offers():
    with pytest.raises(InputError, match=r"no maps at stride 4, 8, 32; it offers strides 16 \(64"):
        TimmBackbone("test_vit")


def test_bad_options_and_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"'test_resnet' cannot be made .*no_such_option"):
        TimmBackbone("test_resnet", options={"no_such_option": 1})
    with pytest.raises(InputError, match="not both"):
        TimmBackbone("test_resnet", pretrained=True, checkpoint="x.pth")
    with pytest.raises(InputFileError, match=r"missing\.pth"):
        TimmBackbone("test_resnet", checkpoint=str(tmp_path / "missing.pth"))
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: these weights lack .*'test_resnet'"):
        TimmBackbone("test_resnet", checkpoint=str(tmp_path / "other.pth"))
    model = SegFormer(backbone=TimmBackbone("test_resnet"), num_classes=3, embed_dim=8)
    with pytest.raises(InputError, match=r"these weights lack .*'test_resnet'"):
        load_weights(model, tmp_path / "other.pth")
    state = timm.create_model("test_resnet").state_dict()
    state["conv1.0.weight"] = torch.zeros(1, 3, 3, 3)
    torch.save(state, tmp_path / "shape.pth")
    with pytest.raises(InputError, match=r"net\.conv1\.0\.weight has shape \(1, 3, 3, 3\)"):
        TimmBackbone("test_resnet", checkpoint=str(tmp_path / "shape.pth"))


def test_the_config_trains_and_answers_frame_by_frame():
    cfg = load_config("segformer/segformer_timm_convnext_tiny_vspw")
    assert cfg.model.backbone.name == "convnext_tiny"
    cfg.model.backbone.name = "test_convnext"
    model = instantiate(cfg.model)
    sample = {
        "frames": torch.randint(0, 256, (1, 3, *SIZE), dtype=torch.uint8),
        "sem_seg": torch.randint(0, 124, (1, *SIZE)),
        "labelled": torch.tensor([True]),
        "image_size": SIZE,
    }
    losses = model([sample, sample])
    losses["loss_sem_seg"].backward()
    assert model.backbone.net.state_dict()
    assert all(p.grad is not None for p in model.decode_head.linear_c1.parameters())
    session = model.eval().new_session()
    answer = session.step(sample["frames"][0], labels_only=True)
    assert tuple(answer["labels"].shape) == SIZE
