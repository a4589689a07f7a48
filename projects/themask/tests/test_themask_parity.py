"""THE-Mask B0 and B1, both stages, against the published implementation."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.modeling.losses import resize_scores
from vss2.modeling.transformer_decoder import MaskPrediction, semantic_scores
from vss2.projects.themask.decoder import ClipPredictions
from vss2.projects.themask.model import MaskClassifier
from vss2.testing.fixtures import filled_state_dict, image_clip, load_fixture

CONFIGS = {
    "themask_1f_b0": "themask/themask_1f_mit_b0_vspw",
    "themask_b0": "themask/themask_mit_b0_vspw",
    "themask_b1": "themask/themask_mit_b1_vspw",
}


class Recorded:
    """A fixture and the filled model that it describes."""

    def __init__(self, name: str):
        self.description, self.arrays = load_fixture(name)
        self.layout = self.description["layout"]
        self.model: MaskClassifier = instantiate(load_config(CONFIGS[name]).model).eval()
        self.model.load_state_dict(filled_state_dict(self.layout, self.description["seed"]))
        self.clips = self.description["config"]["clips"]
        self.tolerance = self.description["tolerance"]

    def frames(self, clip: str) -> torch.Tensor:
        entry = self.clips[clip]
        frames = image_clip(
            entry["frames"], entry["height"], entry["width"], entry["image_clip_seed"]
        )
        return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()

    def check(self, clip: str, name: str, value: torch.Tensor, tolerance: float) -> None:
        expected = torch.from_numpy(self.arrays[f"{clip}/{name}"])
        torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)

    def check_stats(self, clip: str, name: str, value: torch.Tensor, tolerance: float) -> None:
        mean, deviation = self.clips[clip]["stats_mean_std"][name]
        assert abs(value.mean().item() - mean) <= tolerance, name
        assert abs(value.std().item() - deviation) <= tolerance, name


@pytest.fixture(scope="module", params=list(CONFIGS))
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param)


def test_names_shapes_and_parameters_are_the_published_ones(recorded: Recorded) -> None:
    model = recorded.model
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == recorded.layout
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 6) == recorded.description["parameters_million"]


def predictions(recorded: Recorded, clip: str) -> ClipPredictions:
    """All ten predictions of the clip, and its features compared on the way."""
    model, head = recorded.model, recorded.model.decode_head
    images = model.normalize(recorded.frames(clip))
    for index, feature in enumerate(model.backbone(images).values()):
        recorded.check(clip, f"backbone{index}_slice", feature[:, ::16, ::2, ::2], 5e-5)
        recorded.check_stats(clip, f"backbone{index}", feature, 1e-5)
    features = model.encode(images)
    recorded.check(clip, "mask_features_slice", features["mask_features"][:, ::32, ::2, ::2], 5e-5)
    for index, level in enumerate(features["multi_scale"]):
        recorded.check_stats(clip, f"multi_scale{index}", level, 1e-5)
    maps = (features["multi_scale"], features["mask_features"])
    if "queries" not in features:
        return ClipPredictions(head.predictor(*maps, num_frames=len(images), auxiliary=True), [])
    queries = features["queries"]
    recorded.check(clip, "init_frame_queries_slice", queries[None, :, ::10, ::16], 5e-5)
    combined: list[torch.Tensor] = []
    aggregation, combine = head.predictor.aggregation, head.predictor.aggregation.combine
    aggregation.combine = lambda *args: combined.append(combine(*args)) or combined[-1]
    try:
        out = head.predictor(*maps, queries, num_frames=len(images), auxiliary=True)
    finally:
        del aggregation.combine
    recorded.check(clip, "video_queries_after_layer0_slice", combined[0][:, ::10, ::16], 1e-4)
    for index, video in enumerate(combined):
        recorded.check_stats(clip, f"video_queries_after_layer{index}", video, 2e-5)
    return out


@torch.no_grad()
def test_features_and_all_predictions(recorded: Recorded) -> None:
    for clip in recorded.clips:
        found = predictions(recorded, clip)
        assert [len(branch) for branch in found] == [10, 10 if found.frame else 0]
        for name, branch in zip(("video", "frame"), found, strict=True):
            if branch:
                check_branch(recorded, clip, name, branch)


def check_branch(recorded: Recorded, clip: str, name: str, branch: list[MaskPrediction]) -> None:
    tolerance = recorded.tolerance
    logits, masks = branch[-1]
    recorded.check(clip, f"{name}_pred_logits_q4", logits[:, ::4], tolerance["pred_logits"])
    recorded.check(clip, f"{name}_pred_masks_q8", masks[:, ::8], tolerance["pred_masks"])
    first = branch[0].class_logits[:, ::16]
    recorded.check(clip, f"{name}_aux0_logits_q16", first, tolerance["pred_logits"])
    for index, (logits, masks) in enumerate(branch[:-1]):
        recorded.check_stats(clip, f"{name}_aux{index}_logits", logits, tolerance["pred_logits"])
        recorded.check_stats(clip, f"{name}_aux{index}_masks", masks, tolerance["pred_masks"])


@torch.no_grad()
def test_scores_and_class_maps(recorded: Recorded) -> None:
    for clip, entry in recorded.clips.items():
        frames = recorded.frames(clip)
        scores = recorded.model.predict_clip(frames)
        limit = recorded.tolerance["semantic_scores"]
        assert len(scores) == entry["frames"]
        recorded.check(clip, "semantic_scores_c8", scores[:, ::8], limit)
        recorded.check_stats(clip, "semantic_scores", scores, limit)
        labels = resize_scores(resize_scores(scores, frames.shape[-2:]), entry["output_size"])
        labels = labels.softmax(1).argmax(1).numpy()
        clear = recorded.arrays[f"{clip}/semantic_map_clear"] == 1
        assert clear.mean() > 0.98
        assert (labels == recorded.arrays[f"{clip}/semantic_map"])[clear].all()
        assert sorted(np.unique(labels[clear])) == entry["classes_in_map"]


@torch.no_grad()
def test_masks_from_resized_features_are_the_same(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, predictor = recorded.model, recorded.model.decode_head.predictor
    module = sys.modules[type(predictor).__module__]
    sizes: list[tuple[int, int]] = []
    attention_mask = module.attention_mask

    def spy(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        sizes.append(tuple(masks.shape[-2:]))
        return attention_mask(masks, size)

    monkeypatch.setattr(module, "attention_mask", spy)
    for clip, entry in recorded.clips.items():
        frames = recorded.frames(clip)
        sides = (entry["height"], entry["width"])
        levels = [tuple(side // stride for side in sides) for stride in (32, 16, 8)]
        sizes.clear()
        expected = model.predict_clip(frames)
        # Of the coarse levels four pixels a cell, all that a bilinear resize reads.
        assert sizes == [(2 * height, 2 * width) for height, width in levels] * 3
        sizes.clear()
        monkeypatch.setattr(predictor, "fast_attention_masks", True)
        found = model.predict_clip(frames)
        monkeypatch.setattr(predictor, "fast_attention_masks", False)
        assert sizes == levels * 3
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_last_prediction_alone_is_the_last_of_all(recorded: Recorded) -> None:
    for clip in recorded.clips:
        found = predictions(recorded, clip)
        scores = semantic_scores(found.video[-1])[0]
        if found.frame:
            scores = (scores + semantic_scores(found.frame[-1])[:, 0]) / 2
        torch.testing.assert_close(
            recorded.model.predict_clip(recorded.frames(clip)), scores, rtol=0, atol=1e-5
        )
