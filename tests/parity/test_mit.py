"""MiT B0 and B1 against the stage outputs of the published backbone."""

from __future__ import annotations

import pytest
import torch

from vss2.modeling.backbone import MixTransformer
from vss2.modeling.meta_arch.video_segmentor import IMAGENET_MEAN, IMAGENET_STD
from vss2.testing.fixtures import assert_recorded, filled_state_dict, image_clip, load_fixture

PUBLISHED_PARAMETERS = {
    "b0": (3_319_392, 176),
    "b1": (13_151_424, 176),
    "b2": (24_196_288, 332),
    "b3": (44_072_128, 572),
    "b4": (60_842_688, 832),
    "b5": (81_443_008, 1052),
}


def normalized_images(frames: int, height: int, width: int, seed: int) -> torch.Tensor:
    clip = torch.from_numpy(image_clip(frames, height, width, seed)).permute(0, 3, 1, 2).float()
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return (clip - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@pytest.mark.parametrize("size", ["b0", "b1"])
def test_names_and_stage_outputs(size: str) -> None:
    description, arrays = load_fixture(f"mit_{size}")
    model = MixTransformer(size).eval()
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == description["layout"]
    model.load_state_dict(filled_state_dict(description["layout"], description["seed"]))

    recorded: dict[str, torch.Tensor] = {}
    block = model.block1[0]
    model.patch_embed1.register_forward_hook(lambda m, i, o: recorded.update(pe1=o[0]))
    block.attn.register_forward_hook(lambda m, i, o: recorded.update(attn=o))
    block.mlp.register_forward_hook(lambda m, i, o: recorded.update(mlp=o))
    block.register_forward_hook(lambda m, i, o: recorded.update(blk=o))
    with torch.no_grad():
        outputs = model(normalized_images(2, 96, 160, 0))
    for stage, output in outputs.items():
        assert_recorded(description, arrays, stage, output)
    for name in ("pe1", "attn", "mlp", "blk"):
        assert_recorded(description, arrays, f"check.{name}", recorded[name])


@pytest.mark.parametrize("size", ["b0", "b1"])
def test_layer_norm_eps_shows_on_an_all_zero_image(size: str) -> None:
    description, arrays = load_fixture(f"mit_{size}")
    model = MixTransformer(size).eval()
    model.load_state_dict(filled_state_dict(description["layout"], description["seed"]))
    with torch.no_grad():
        tokens, _, width = model.patch_embed1(torch.zeros(1, 3, 32, 32))
        stage4 = model(torch.zeros(1, 3, 32, 32))["stage4"].flatten()
    interior = tokens[0, 3 * width + 3]
    for value, key in ((interior, "zero.patch_embed1"), (stage4, "zero.stage4")):
        expected = torch.from_numpy(arrays[key])
        assert (value - expected).abs().max() <= 2e-5 * expected.abs().max(), key


@pytest.mark.parametrize("size", list(PUBLISHED_PARAMETERS))
def test_sizes_have_the_published_parameter_counts(size: str) -> None:
    with torch.device("meta"):
        model = MixTransformer(size)
    parameters, tensors = PUBLISHED_PARAMETERS[size]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
