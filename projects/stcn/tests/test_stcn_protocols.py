"""The published resize, multi-scale testing and stage-0 weights, against recorded numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stcn_cases import (
    assert_masks,
    assert_near,
    build,
    clip,
    gram_error,
    masks_of,
    paint,
    recorded,
    recorded_clip,
    run,
    stacked,
)

from vss2.checkpoint import load_weights
from vss2.layers.topk_softmax import (
    frame_topk,
    gaussian_log_kernel,
    l2_similarity,
    nearest_query,
)
from vss2.modeling.memory_session import placement
from vss2.projects.stcn import STCN
from vss2.projects.stcn.multi_scale import quantized
from vss2.testing.fixtures import filled, filled_state_dict, load_fixture

PROBABILITY = 1e-4


@pytest.fixture(scope="module")
def resized() -> tuple[dict[str, Any], dict[str, Any], STCN]:
    return recorded("stcn_yv_resize")


@pytest.mark.parametrize("case", ["down", "up_portrait"])
def test_resize_after_normalising_and_the_way_back(resized: Any, case: str) -> None:
    description, arrays, model = resized
    options = description["config"]["cases"][case]
    height, width = options["image_hw"]
    labels = sorted(options["labels"])
    frames = clip(options["frames"], height, width, description["seed"])
    given = {event["frame"]: paint(event["labels"], height, width) for event in options["events"]}
    session = model.new_session(
        protocol="youtube_vos", mem_every=2, top_k=20, size=options["short_side"]
    )
    where = placement(height, width, options["short_side"], 16)
    assert list(where.size) == options["resized_hw"]
    assert list(where.padding) == arrays[f"{case}/pad"].tolist()
    left, right, top, bottom = where.padding

    session._input_size = (height, width)
    padded = session._placed(model.normalize(frames), "bicubic")
    assert list(padded.shape[-2:]) == options["padded_hw"]
    assert_near(padded[0, 0, ::5, ::5], arrays[f"{case}/padded"], 2e-5)
    bottom_end, right_end = padded.shape[-2] - bottom, padded.shape[-1] - right
    image = padded[..., top:bottom_end, left:right_end]
    assert_near(image[0, :, ::3, ::3], arrays[f"{case}/image"], 2e-5)
    stats = torch.stack(
        [image.mean((2, 3)), image.std((2, 3)), image.amin((2, 3)), image.amax((2, 3))]
    )
    assert_near(stats, arrays[f"{case}/image_stats"], 2e-5)
    for t, mask in enumerate(given.values()):
        hot = torch.stack([mask == label for label in labels]).float()
        small = session._placed(hot[None], "nearest")[0, :, top:bottom_end, left:right_end]
        index = (small * torch.arange(1, len(labels) + 1).view(-1, 1, 1)).sum(0)
        assert torch.equal(index.to(torch.uint8), torch.from_numpy(arrays[f"{case}/mask"][t]))
    back = torch.from_numpy(arrays[f"{case}/way_back_in"].astype(np.float32))
    prob = session._scores(back, (height, width))
    assert_near(prob[:, ::4, ::4], arrays[f"{case}/way_back_prob"], 1e-5)
    ids = torch.tensor([0, *labels])[prob.argmax(0)]
    assert (ids != torch.from_numpy(arrays[f"{case}/way_back_mask"])).sum() <= 2

    session.reset()
    answers = run(session, frames, given)
    prob = stacked(answers, labels)
    assert_near(prob[:, :, ::6, ::6], arrays[f"{case}/run_prob"], PROBABILITY)
    assert_masks(masks_of(answers), arrays[f"{case}/run_mask"])


def test_sizes_at_480() -> None:
    _, arrays = load_fixture("stcn_yv_resize")
    for height, width, new_height, new_width, *padding in arrays["sizes_480"].tolist():
        where = placement(height, width, 480, 16)
        assert where.size == (new_height, new_width)
        assert list(where.padding) == padding


def test_multi_scale_and_flip() -> None:
    description, arrays, model = recorded("stcn_multiscale")
    config = description["config"]
    frames = recorded_clip(description)
    size = tuple(frames.shape[-2:])
    given = {
        event["frame"]: paint(event["labels"], *size) for event in description["input"]["events"]
    }
    base = {"protocol": "youtube_vos", "mem_every": 2, "top_k": 20}
    scales = [
        {
            "size": part["short_side"],
            "flip": part["flip"],
            "kernel_sigma": part["kernel_sigma"],
        }
        for part in config["runs"].values()
    ]
    session = model.new_session(**base, scales=scales)
    seen: list[list[torch.Tensor]] = [[] for _ in scales]
    for part, probabilities in zip(session.runs, seen, strict=True):
        part.step = watched(part.step, probabilities, config["labels"])
    required = config["required_frames"]
    answers = run(session, frames, given, required)
    assert [answer["frame_index"] for answer in answers] == required
    for name, probabilities in zip(config["runs"], seen, strict=True):
        prob = torch.stack(probabilities)
        assert_near(prob[:, :, ::5, ::5], arrays[f"{name}/prob"], PROBABILITY)
        levels = quantized(prob)[:, :, ::2, ::2].int()
        off = (levels - torch.from_numpy(arrays[f"{name}/prob_u8"]).int()).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() <= 0.005
    levels = sum(quantized(torch.stack(p)).int() for p in seen)[:, :, ::3, ::3]
    off = (levels - torch.from_numpy(arrays["sum"].astype(np.int32))).abs()
    assert off.max() <= 2
    assert (off > 0).float().mean() <= 0.01
    assert_masks(masks_of(answers), arrays["mask_labels"], 0.005)


def watched(step: Any, probabilities: list[torch.Tensor], labels: list[int]) -> Any:
    """`step` that also keeps the answers' probabilities, of all labels."""

    def wrapper(*args: Any, **options: Any) -> Any:
        answer = step(*args, **options)
        if answer is not None:
            probabilities.append(stacked([answer], labels)[:, 0])
        return answer

    return wrapper


@pytest.mark.parametrize("sigma", [None, 7, 2])
def test_kernelized_affinity(sigma: float | None) -> None:
    _, arrays = load_fixture("stcn_multiscale")
    keys = torch.from_numpy(4 * filled("ms.key", (1, 64, 162), 4))[0].t().contiguous()
    queries = torch.from_numpy(4 * filled("ms.query", (1, 64, 54), 4))[0].t().contiguous()
    norms = keys.square().sum(1)
    scores = l2_similarity(keys, norms, queries)
    if sigma is not None:
        best = None
        for first in (0, 30):  # in two chunks
            part = queries[first : first + 30]
            best = nearest_query(keys, norms, part, first, best)
        assert best is not None
        scores = scores + gaussian_log_kernel(torch.arange(54), best[1], 9, sigma)
    top, index = frame_topk(scores.unflatten(1, (3, 54)), 20)
    affinity = torch.zeros(54, 162).scatter(1, index, top.softmax(1))
    assert_near(affinity.t()[None], arrays[f"affinity_sigma_{sigma}"], PROBABILITY)


def stage0_file(tmp_path: Any, description: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    layout = {**description["layout"], **description["int_buffers"]}
    state = filled_state_dict(layout, description["seed"])
    torch.save(state, tmp_path / "s0.pth")
    return tmp_path / "s0.pth", state


def test_a_stage_0_file_in_the_network_for_several_objects(tmp_path: Any) -> None:
    description, arrays = load_fixture("stcn_load")
    path, state = stage0_file(tmp_path, description)
    single = build(single_object=True)
    assert load_weights(single, path, strict=True).missing == []
    del single

    model = build().train()
    load_weights(model, path, strict=True)
    loaded = model.state_dict()
    first = loaded.pop("value_encoder.conv1.weight")
    assert torch.equal(first[:, :4], state["value_encoder.conv1.weight"])
    assert gram_error(first[:, 4:]) < 1e-5
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())

    load_weights(model.eval(), path, strict=True)
    conv = model.value_encoder.conv1.weight.detach()
    assert not conv[:, 4].any()
    assert_near(conv[::16, :, ::2, ::3], arrays["eval/conv1_slice"], 0)
    mask = torch.from_numpy(arrays["input/first_mask"])
    for k in (1, 2):
        name = f"eval_{k}_object"
        session = model.new_session(mem_every=2, top_k=20)
        answers = run(session, recorded_clip(description), {0: torch.where(mask <= k, mask, 0)})
        prob = stacked(answers, range(1, k + 1))
        assert_near(prob[:, :, ::4, ::4], arrays[f"{name}/prob"], PROBABILITY)
        stats = torch.stack([prob.mean((2, 3)), prob.std((2, 3))])
        assert_near(stats, arrays[f"{name}/prob_stats"], PROBABILITY)
        assert_masks(masks_of(answers), arrays[f"{name}/mask"])
        assert set(session.memory_positions().values()) == {
            arrays[f"{name}/memory_positions"].item()
        }


def test_a_multi_object_file_does_not_become_one_of_stage_0(tmp_path: Any) -> None:
    from vss2.errors import InputError

    torch.save(build(18, value_dim=32).state_dict(), tmp_path / "s1.pth")
    model = build(18, value_dim=32, single_object=True)
    with pytest.raises(InputError, match="single_object"):
        load_weights(model, tmp_path / "s1.pth")
