"""Networks and propagated clips against the published implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stcn_cases import (
    assert_masks,
    assert_near,
    masks_of,
    paint,
    recorded,
    recorded_clip,
    run,
    stacked,
)

from vss2.layers.soft_aggregation import soft_aggregate
from vss2.layers.topk_softmax import frame_topk, l2_similarity
from vss2.modeling.memory_bank import MemoryBank, MemoryEntry
from vss2.modeling.memory_session import placement
from vss2.projects.stcn import STCN
from vss2.projects.stcn.losses import BootstrappedCrossEntropy
from vss2.projects.stcn.model import training_affinity
from vss2.testing.fixtures import filled, load_fixture

Recorded = tuple[dict[str, Any], dict[str, Any], STCN]
PROBABILITY = 1e-4
FEATURE = 1e-4  # of the largest absolute value


@pytest.fixture(scope="module")
def davis() -> Recorded:
    return recorded("stcn")


def assert_module(arrays: Mapping[str, np.ndarray], name: str, value: torch.Tensor) -> None:
    """Compare with `<name>/slice` and `<name>/stats` (mean, deviation, minimum, maximum)."""
    steps = {
        "key_encoder.stem": np.s_[:, 0:64:16, ::6, ::6],
        "key_encoder.f4": np.s_[:, ::64, ::4, ::4],
        "key_encoder.f8": np.s_[:, ::64, ::2, ::2],
        "key_encoder.f16": np.s_[:, ::64],
        "key.f16_thin": np.s_[:, ::32],
        "value_encoder.stem": np.s_[:, 0:64:16, ::4, ::4],
        "value_encoder.layer3": np.s_[:, ::32],
        "value.v16": np.s_[:, ::16],
        "memory.readout": np.s_[:, ::16],
        "decoder.up_16_8": np.s_[:, ::64, ::2, ::2],
        "decoder.up_8_4": np.s_[:, ::64, ::4, ::4],
        "decoder.logits": np.s_[:, :, ::3, ::3],
        "aggregate.frame1": np.s_[:, :, ::3, ::3],
    }
    stats = arrays[f"{name}/stats"]
    limit = FEATURE * max(abs(stats[2]), abs(stats[3]))
    index: Any = steps.get(name, np.s_[:, ::64])
    assert_near(value[index], arrays[f"{name}/slice"], limit)
    ours = torch.stack([value.mean(), value.std(), value.min(), value.max()])
    assert_near(ours, stats, limit)


@torch.no_grad()
def test_every_module_gives_the_published_features(davis: Recorded) -> None:
    description, arrays, model = davis
    frames = recorded_clip(description)
    mask = paint(description["input"]["objects"], 75, 107)
    assert torch.equal(mask.to(torch.uint8), torch.from_numpy(arrays["input/first_mask"]))
    where = placement(75, 107, None, 16)
    assert list(where.padding) == arrays["pad"].tolist()
    normal = model.normalize(frames[:2])
    assert_near(normal[0, :, ::8, ::8], arrays["input/frame0_normalised"], 1e-5)
    images = F.pad(normal, where.padding)
    first = F.pad(torch.stack([mask == 1, mask == 2]).float(), where.padding)
    first = soft_aggregate(first)[1:]

    seen: dict[str, torch.Tensor] = {}
    encoder = model.value_encoder
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name, module in {
            "value_encoder.layer3": encoder.layer3,
            "value_encoder.fuser.block1": encoder.fuser.block1,
            "value_encoder.fuser.attention": encoder.fuser.attention,
            "decoder.compress": model.decoder.compress,
            "decoder.up_16_8": model.decoder.up_16_8,
            "decoder.up_8_4": model.decoder.up_8_4,
        }.items()
    ]
    hooks.append(
        encoder.layer1.register_forward_pre_hook(
            lambda _m, inputs: seen.update({"value_encoder.stem": inputs[0].clone()})
        )
    )
    stem = model.key_encoder.bn1(model.key_encoder.conv1(images[:1])).relu()
    memory_frame, query = model.encode(images[:1]), model.encode(images[1:])
    bank = MemoryBank(20, None, None)
    entry = model.memorize(memory_frame, first)
    bank.append(entry)
    readout = model.read(query, bank)
    logits = model._logits(query, readout)
    for hook in hooks:
        hook.remove()

    assert_module(arrays, "key_encoder.stem", stem)
    for level in ("f4", "f8", "f16"):
        assert_module(arrays, f"key_encoder.{level}", memory_frame[level])
    assert_near(memory_frame["key"], arrays["key.k16"], FEATURE * np.abs(arrays["key.k16"]).max())
    assert_module(arrays, "key.f16_thin", memory_frame["f16_thin"])
    values = entry.values.unflatten(1, (5, 7)).permute(0, 3, 1, 2)
    assert_module(arrays, "value.v16", values[:, :, None])
    assert_module(arrays, "memory.readout", readout)
    assert_module(arrays, "decoder.logits", logits)
    for name, value in seen.items():
        assert_module(arrays, name, value)
    assert_module(arrays, "aggregate.frame1", soft_aggregate(logits.sigmoid()))

    similarity = l2_similarity(entry.key, entry.key.square().sum(1), query["key"][0].flatten(1).t())
    top, index = frame_topk(similarity[:, None], 20)
    affinity = torch.zeros_like(similarity).scatter(1, index, top.softmax(1))
    assert_near(affinity.t()[None], arrays["memory.affinity_top20"], PROBABILITY)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("mem5_top20", 3),
        ("mem2_top20_last", 4),
        ("mem3_top30", 4),
        ("mem5_top20_one_object", 5),
    ],
)
def test_single_bank_clips_are_the_published_ones(davis: Recorded, name: str, step: int) -> None:
    description, arrays, model = davis
    options = dict(description["config"]["runs"][name])
    ids = list(range(1, options.pop("objects") + 1))
    mask = torch.from_numpy(arrays["input/first_mask"])
    mask = torch.where(mask <= len(ids), mask, 0)
    session = model.new_session(protocol="davis", **options)
    answers = run(session, recorded_clip(description), {0: mask})
    prob = stacked(answers, ids)
    assert_near(prob[:, :, ::step, ::step], arrays[f"{name}/prob"], PROBABILITY)
    stats = torch.stack([prob.mean((2, 3)), prob.std((2, 3))])
    assert_near(stats, arrays[f"{name}/prob_stats"], PROBABILITY)
    assert_masks(masks_of(answers), arrays[f"{name}/mask"])
    held = session.memory_positions()
    assert set(held.values()) == {arrays[f"{name}/memory_positions"].item()}


def test_masks_at_another_size_are_the_published_ones(davis: Recorded) -> None:
    description, arrays, model = davis
    mask = torch.from_numpy(arrays["input/first_mask"])
    answers = run(
        model.new_session(), recorded_clip(description), {0: mask}, output_size=(110, 160)
    )
    assert_masks(masks_of(answers), arrays["output/mask_resized"])


def test_an_object_that_appears_later_has_its_own_bank() -> None:
    description, arrays, model = recorded("stcn_yv")
    frames = recorded_clip(description)
    size = tuple(frames.shape[-2:])
    labels = description["config"]["labels"]
    given = {
        event["frame"]: paint(event["objects"], *size) for event in description["input"]["events"]
    }
    for t, mask in given.items():
        assert torch.equal(mask.to(torch.uint8), torch.from_numpy(arrays[f"input/mask_{t}"]))
    named = {t: torch.tensor([0, *labels])[mask] for t, mask in given.items()}
    options = description["config"]["runs"]["mem2"]
    session = model.new_session(protocol="youtube_vos", **options)
    answers = run(session, frames, named)
    assert answers[0]["object_ids"] == []
    assert not answers[0]["mask"].any()
    prob = stacked(answers, labels)
    assert_near(prob[:, 1:, ::5, ::5], arrays["mem2/prob"][:, 1:], PROBABILITY)
    stats = torch.stack([prob.mean((2, 3)), prob.std((2, 3))])[:, :, 1:]
    assert_near(stats, arrays["mem2/prob_stats"][:, :, 1:], PROBABILITY)
    assert_masks(masks_of(answers), np.array([0, *labels])[arrays["mem2/mask"]])
    held = session.memory_positions()
    assert [held[i] for i in labels] == [
        arrays[f"mem2/memory_positions_{k}"].item() for k in (1, 2)
    ]
    resized = run(
        model.new_session(protocol="youtube_vos", **options), frames, named, output_size=(88, 113)
    )
    assert_masks(masks_of(resized), arrays["output/mask_resized_labels"])


@pytest.fixture(scope="module")
def two_late() -> Recorded:
    return recorded("stcn_yv2")


@pytest.mark.parametrize("name", ["two_late", "two_late_last", "listed_again_once"])
def test_objects_that_come_together_and_again(two_late: Recorded, name: str) -> None:
    description, arrays, model = two_late
    frames = recorded_clip(description)
    options = dict(description["config"]["runs"][name])
    masks = {t: torch.from_numpy(arrays[f"input/mask_{t}"]) for t in options.pop("events")}
    session = model.new_session(protocol="generic", **options)
    answers = run(session, frames, masks)
    prob = stacked(answers, [1, 2, 3])
    assert_near(prob[:, :, ::5, ::5], arrays[f"{name}/prob"], PROBABILITY)
    stats = torch.stack([prob.mean((2, 3)), prob.std((2, 3))])
    assert_near(stats, arrays[f"{name}/prob_stats"], PROBABILITY)
    assert_masks(masks_of(answers), arrays[f"{name}/mask"])
    held = session.memory_positions()
    assert list(held) == arrays[f"{name}/enabled"].tolist()
    for i, positions in held.items():
        assert positions == arrays[f"{name}/memory_positions_{i}"][0]


def test_aggregation_similarity_padding_and_loss() -> None:
    _, arrays = load_fixture("stcn_aggregate")
    for k in (1, 2, 3):
        both = soft_aggregate(torch.from_numpy(arrays[f"in_{k}"]))
        assert_near(both, arrays[f"with_bg_{k}"], PROBABILITY)
        assert_near(both[1:], arrays[f"no_bg_{k}"], PROBABILITY)
    for size, padding in zip(arrays["pad.sizes"], arrays["pad.lrtb"], strict=True):
        assert list(placement(int(size[0]), int(size[1]), None, 16).padding) == padding.tolist()

    keys, queries, values = (
        torch.from_numpy(filled(f"memory.{name}", shape, 0))
        for name, shape in {"key": (1, 64, 60), "query": (1, 64, 24), "value": (2, 8, 60)}.items()
    )
    keys, queries = 4 * keys, 4 * queries
    rows = keys[0].t().contiguous()
    similarity = l2_similarity(rows, rows.square().sum(1), queries[0].t())
    expected = arrays["memory.similarity"]
    assert_near(similarity.t()[None], expected, 1e-5 * np.abs(expected).max())
    for k in (1, 5, 20, 60):
        top, index = frame_topk(similarity.unflatten(1, (5, 12)), k)
        affinity = torch.zeros_like(similarity).scatter(1, index, top.softmax(1))
        assert_near(affinity.t()[None], arrays[f"memory.affinity_top{k}"], PROBABILITY)
        bank = MemoryBank(k, None, None)
        for t in range(5):
            here = slice(12 * t, 12 * t + 12)
            bank.append(MemoryEntry(rows[here], values.transpose(1, 2)[:, here]))
        readout = bank.read(queries.unflatten(2, (4, 6))).flatten(2)
        assert_near(readout, arrays[f"memory.readout_top{k}"], PROBABILITY)
    assert_near(training_affinity(keys, queries), arrays["memory.affinity_full"], PROBABILITY)


def test_aggregated_log_odds_and_bootstrapped_loss() -> None:
    from vss2.layers.soft_aggregation import aggregate_log_odds

    _, arrays = load_fixture("stcn_aggregate")
    log_odds = aggregate_log_odds(torch.from_numpy(arrays["train_in"]), dim=1)
    expected = arrays["train_logits"]
    assert_near(log_odds, expected, FEATURE * np.abs(expected).max())
    logits = torch.from_numpy(6 * filled("bce.logits", (1, 3, 16, 16), 0))[0]
    labels = (7 * torch.arange(256) // 11 % 3).view(16, 16)
    loss = BootstrappedCrossEntropy(20000, 70000, 0.15)
    for iteration, (value, kept) in zip(
        arrays["bce.iterations"].tolist(), arrays["bce.out"], strict=True
    ):
        assert loss(logits, labels, iteration).item() == pytest.approx(value, rel=1e-4)
        assert loss.kept(iteration) == pytest.approx(kept, rel=1e-6)
