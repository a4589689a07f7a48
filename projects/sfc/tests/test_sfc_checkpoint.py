"""Files of every publisher, the warm-up that is made once, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from sfc_cases import encoder_for, published_file, published_model, published_state

import vss2
from vss2.checkpoint import VideoCheckpointer, load_weights
from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.errors import InputError
from vss2.projects.sfc import SFC, FineGrainedCorrespondence, FrameEncoder

TINY = {"total_steps": 4, "projection_dim": 8, "hidden_dim": 16}
ROWS = {  # of the published table: depth of each encoder, top_k, radius, temperature
    "sfc_fused_davis": (18, 50, 15, 15, 0.1),
    "fine_grained_davis": (18, None, 10, 12, 0.05),
    "crw_davis": (18, None, 10, 12, 0.05),
    "imagenet50_davis": (None, 50, 10, 12, 0.05),
    "mocov1_davis": (None, 50, 10, 12, 0.05),
    "simsiam_davis": (None, 50, 10, 12, 0.05),
    "pixpro_davis": (None, 50, 10, 12, 0.05),
    "vfs_davis": (None, 50, 10, 12, 0.05),
}


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_the_warm_up_is_made_once_and_recorded(tmp_path: Path) -> None:
    model = published_model(tmp_path, "fine-grained")
    assert model.fine.bn_warmed
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    VideoCheckpointer(model, str(tmp_path)).save("own")
    other = SFC(fine=FrameEncoder(18))
    load_weights(other, tmp_path / "own.pth", strict=True)
    assert same(other.state_dict(), saved)
    VideoCheckpointer(other, str(tmp_path)).save("again")
    load_weights(other, tmp_path / "again.pth", strict=True)
    assert same(other.state_dict(), saved)


def test_weights_saved_without_the_warm_up_stay_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = published_model(tmp_path, "fine-grained", bn_warmup=False)
    raw = published_state("fine-grained")["online_encoder.bn1.running_mean"]
    assert torch.equal(model.fine.bn1.running_mean, raw)
    VideoCheckpointer(model, str(tmp_path)).save("own")
    other = SFC(fine=FrameEncoder(18))
    with caplog.at_level(logging.WARNING, logger="vss2"):
        load_weights(other, tmp_path / "own.pth", strict=True)
    assert same(other.state_dict(), model.state_dict())
    assert "not warmed up; they stay as they are" in caplog.text


def test_both_parts_load_from_two_files_or_from_one(tmp_path: Path) -> None:
    files = {
        part: str(published_file(tmp_path, variant, published_state(variant)))
        for part, variant in (("fine", "fine-grained"), ("semantic", "mocov1"))
    }
    model = vss2.load("sfc/sfc_fused_davis", weights=files, device="cpu")
    assert model.fine.bn_warmed
    assert model.semantic.bn_warmed
    VideoCheckpointer(model, str(tmp_path)).save("own")
    other = vss2.load("sfc/sfc_fused_davis", weights=str(tmp_path / "own.pth"), device="cpu")
    assert same(other.state_dict(), model.state_dict())
    with pytest.raises(InputError, match=r"missing .*semantic"):
        vss2.load("sfc/sfc_fused_davis", weights={"fine": files["fine"]}, device="cpu")
    with pytest.raises(InputError, match=r"unexpected .*coarse\."):
        load_weights(model, {**files, "coarse": files["fine"]}, strict=True)


def test_what_is_left_out_is_listed(tmp_path: Path) -> None:
    state = published_state("crw")
    report = load_weights(
        SFC(fine=encoder_for("crw")), published_file(tmp_path, "crw", state), strict=True
    )
    layer4 = [name for name in state if "layer4" in name]
    assert set(report.ignored) == {
        f"fine.{name}" for name in [*layer4, "selfsim_fc.0.weight", "selfsim_fc.0.bias"]
    }
    assert not report.missing
    extra = {**state, "encoder.model.layer2.5.conv1.weight": torch.zeros(1)}
    with pytest.raises(InputError, match=r"unexpected 1: fine\.layer2\.5"):
        load_weights(
            SFC(fine=encoder_for("crw")), published_file(tmp_path, "crw", extra), strict=True
        )


def test_old_names_of_crw(tmp_path: Path) -> None:
    state = published_state("crw")
    old = {
        name.replace("conv1.weight", "conv1.1.weight").replace("conv2.weight", "conv2.1.weight"): v
        for name, v in state.items()
    }
    models = [SFC(fine=encoder_for("crw")) for _ in range(2)]
    for model, names in zip(models, (state, old), strict=True):
        load_weights(model, published_file(tmp_path, "crw", names), strict=True)
    assert same(models[0].state_dict(), models[1].state_dict())


def vfs_name(name: str) -> str:
    """A torchvision name in the layout of VFS."""
    unit, _, leaf = name.rpartition(".")
    parent, _, last = unit.rpartition(".")
    parent = f"{parent}." if parent else ""
    if last.isdigit() and "downsample" in unit:
        return f"backbone.{parent}{('conv', 'bn')[int(last)]}.{leaf}"
    kind = "bn" if last.startswith("bn") else "conv"
    return f"backbone.{parent}conv{last[-1]}.{kind}.{leaf}"


def test_the_layout_of_vfs(tmp_path: Path) -> None:
    plain = published_state("imagenet50")
    named = {vfs_name(n): v for n, v in plain.items() if not n.startswith("fc.")}
    named["cls_head.projection.weight"] = torch.zeros(2)
    torch.save({"state_dict": named}, tmp_path / "vfs.pth")
    models = [SFC(semantic=FrameEncoder(50), bn_warmup=False) for _ in range(2)]
    load_weights(models[0], published_file(tmp_path, "imagenet50", plain), strict=True)
    load_weights(models[1], tmp_path / "vfs.pth", strict=True)
    assert "backbone.layer2.0.downsample.bn.weight" in named
    assert same(models[0].state_dict(), models[1].state_dict())


def test_counters_that_old_files_lack_are_zero(tmp_path: Path) -> None:
    state = {n: v for n, v in published_state("crw").items() if "num_batches" not in n}
    model = SFC(fine=encoder_for("crw"), bn_warmup=False)
    load_weights(model, published_file(tmp_path, "crw", state), strict=True)
    assert int(model.fine.bn1.num_batches_tracked) == 0


@pytest.mark.parametrize(("variant", "padding"), [("crw", "zeros"), ("fine-grained", "reflect")])
def test_weights_of_an_encoder_that_pads_otherwise(
    variant: str, padding: str, tmp_path: Path
) -> None:
    file = published_file(tmp_path, variant, published_state(variant))
    with pytest.raises(InputError, match="set padding_mode="):
        load_weights(SFC(fine=FrameEncoder(18, padding)), file, strict=True)


def test_weights_of_another_depth(tmp_path: Path) -> None:
    file = published_file(tmp_path, "crw", published_state("crw"))
    with pytest.raises(InputError, match="another shape"):
        load_weights(SFC(semantic=FrameEncoder(50, "reflect")), file, strict=True)


def test_weights_trained_here_propagate_without_the_warm_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = FineGrainedCorrespondence(encoder=FrameEncoder(18, num_stages=4), **TINY)
    VideoCheckpointer(trained, str(tmp_path)).save("trained")
    model = SFC(fine=FrameEncoder(18))
    load_weights(model, tmp_path / "trained.pth", strict=True)
    assert not model.fine.bn_warmed
    images = torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(model.eval().encode(images), trained.eval().encode(images))
    again = FineGrainedCorrespondence(encoder=FrameEncoder(18, num_stages=4), **TINY)
    load_weights(again, tmp_path / "trained.pth", strict=True)
    assert same(again.state_dict(), trained.state_dict())
    published = trained.published_checkpoint(trained.state_dict())["model"]
    assert not any("bn_warmed" in name or "ema_step" in name for name in published)
    torch.save({"model": published}, tmp_path / "published.pth")
    load_weights(again, tmp_path / "published.pth", strict=True)
    assert again.online_encoder.bn_warmed
    with pytest.raises(InputError, match="warm them up again"):
        again.published_checkpoint(again.state_dict())


@pytest.mark.parametrize("name", list(ROWS))
def test_configs_of_the_published_table(name: str) -> None:
    cfg = load_config(f"sfc/{name}")
    model = instantiate(cfg.model)
    fine, semantic, top_k, radius, temperature = ROWS[name]
    channels = {18: 256, 50: 1024, None: 0}
    assert (0 if model.fine is None else model.fine.num_channels) == channels[fine]
    assert (0 if model.semantic is None else model.semantic.num_channels) == channels[semantic]
    session = model.eval().new_session()
    found = (session.top_k, session.radius, session.temperature, session.context)
    assert found == (top_k, radius, temperature, 20)
    assert (session.long_mem, session.norm_mask, model.bn_warmup) == ((0,), False, True)
    assert (name == "crw_davis") == (model.fine is not None and model.fine.padding_mode != "zeros")


def test_a_model_without_encoders_or_to_be_trained_is_refused() -> None:
    with pytest.raises(InputError, match="needs an encoder"):
        SFC()
    with pytest.raises(InputError, match="FineGrainedCorrespondence trains"):
        SFC(fine=FrameEncoder(18)).losses(torch.zeros(1), [])
    with pytest.raises(InputError, match="num_stages=4"):
        FineGrainedCorrespondence(encoder=FrameEncoder(18), **TINY)
