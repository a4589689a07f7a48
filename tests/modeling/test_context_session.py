"""Label propagation sessions against the published rule, written down step by step."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F

from vss2.errors import InputError
from vss2.modeling.context_session import ContextSession
from vss2.modeling.meta_arch.label_propagator import LabelPropagator

FRAMES, HEIGHT, WIDTH = 9, 32, 40
OPTIONS = {"context": 3, "radius": 2.5, "top_k": 4, "temperature": 0.07}


class Patches(LabelPropagator):
    """Random projections of 4x4 patches."""

    def __init__(self) -> None:
        super().__init__(session=dict(OPTIONS), min_size=4)
        self.project = torch.nn.Conv2d(3, 8, 4, 4)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.project(images), dim=1)

    def losses(self, images, samples):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@pytest.fixture
def model() -> Patches:
    torch.manual_seed(0)
    return Patches().eval()


@pytest.fixture
def clip() -> torch.Tensor:
    torch.manual_seed(1)
    noise = torch.rand(1, 3, HEIGHT + FRAMES, WIDTH + FRAMES)
    scene = F.avg_pool2d(noise, 7, 1, 3)[0] * 255
    frames = [scene[:, t : t + HEIGHT, t : t + WIDTH] for t in range(FRAMES)]
    # The noise keeps keys of different frames from being equally good.
    return (torch.stack(frames) + 40 * torch.rand(FRAMES, 3, HEIGHT, WIDTH)).byte()


def first_mask(*ids: int) -> torch.Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.int32)
    for place, identity in enumerate(ids):
        mask[6:26, 3 + 12 * place : 13 + 12 * place] = identity
    return mask


def propagate_by_rule(  # type: ignore[no-untyped-def]
    model: Patches, clip: torch.Tensor, first: torch.Tensor, long_mem=(0,), norm_mask=False
) -> list[torch.Tensor]:
    """Soft labels of every frame, from the frames padded in time by copies of the first."""
    n, radius = OPTIONS["context"], OPTIONS["radius"]
    with torch.no_grad():
        features = model.encode(model.normalize(clip))
    height, width = features.shape[-2:]
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    cells = grid.flatten(1).t().float()
    far = torch.cdist(cells, cells) >= radius
    padded = [features[max(0, g - n)].flatten(1) for g in range(len(clip) + n)]
    start = F.interpolate(first[None], (height, width), mode="bilinear")[0].flatten(1)
    labels = [start] * (n + 1) + [None] * (len(clip) - 1)

    def normalized(x: torch.Tensor) -> torch.Tensor:
        x = x - x.amin(0)
        return torch.where(x.amax(0) > 0, x / x.amax(0), 0.0)

    shown = [normalized(start) if norm_mask else start]
    if norm_mask:
        labels[0] = shown[0]
    for t in range(1, len(clip)):
        slots = [m + n + 1 if m > 0 and t >= n + m + 1 else 0 for m in long_mem]
        slots += range(t, t + n)
        products = torch.stack([padded[n + t].t() @ padded[g] for g in slots], dim=1)
        products[:, len(long_mem) :].masked_fill_(far[:, None], -1e10)
        # Of equal ones the lower slot first, which matters where only slot 0 is normalised.
        order = (products.flatten(1) / OPTIONS["temperature"]).sort(stable=True, descending=True)
        value, index = (x[:, : OPTIONS["top_k"]] for x in order)
        table = torch.cat([labels[g] for g in slots], dim=1)
        labels[n + t] = (table[:, index] * value.softmax(1)).sum(2)
        shown.append(normalized(labels[n + t]) if norm_mask else labels[n + t])
    return [x.unflatten(1, (height, width)) for x in shown]


@pytest.mark.parametrize("norm_mask", [False, True])
@pytest.mark.parametrize("long_mem", [(0,), (), (0, 2)])
def test_labels_follow_the_published_rule(
    model: Patches, clip: torch.Tensor, long_mem: tuple[int, ...], norm_mask: bool
) -> None:
    mask = first_mask(4, 2)
    first = torch.stack([mask == i for i in (0, 2, 4)]).float()
    expected = propagate_by_rule(model, clip, first, long_mem, norm_mask)
    session = model.new_session(long_mem=long_mem, norm_mask=norm_mask)
    for t, frame in enumerate(clip):
        answer = session.step(frame, mask=mask if t == 0 else None)
        wanted = F.interpolate(expected[t][None], (HEIGHT, WIDTH), mode="bilinear")[0]
        torch.testing.assert_close(answer["prob"], wanted, atol=1e-5, rtol=0)
        assert torch.equal(answer["mask"], torch.tensor([0, 2, 4]).byte()[wanted.argmax(0)])


def test_memory_does_not_grow_with_the_video(model: Patches, clip: torch.Tensor) -> None:
    session = model.new_session(long_mem=(0, 1))
    held = []
    for t in range(5 * FRAMES):
        session.step(clip[t % FRAMES], mask=first_mask(1) if t == 0 else None)
        held.append(len(session._entries))
    assert max(held) == held[-1] == OPTIONS["context"] + 2


def test_heat_maps_of_any_number_propagate_one_by_one(model: Patches, clip: torch.Tensor) -> None:
    torch.manual_seed(2)
    heat = torch.rand(5, HEIGHT, WIDTH) * 0.1
    together, alone = model.new_session(), model.new_session()
    ids = [3, 8, 11, 500, 70000]
    for t, frame in enumerate(clip):
        given = {"mask": heat, "objects": ids} if t == 0 else {}
        both = together.step(frame, **given)
        one = alone.step(frame, mask=heat[3:4], objects=[500]) if t == 0 else alone.step(frame)
        torch.testing.assert_close(both["prob"][4], one["prob"][1])
    assert both["object_ids"] == ids
    assert both["mask"].dtype == torch.int32


def test_frames_in_batches_and_alone_answer_alike(model: Patches, clip: torch.Tensor) -> None:
    stepped, batched = model.new_session(), model.new_session()
    answers = [
        stepped.step(frame, mask=first_mask(1, 2) if t == 0 else None)
        for t, frame in enumerate(clip)
    ]
    batched.step(clip[0], mask=first_mask(1, 2))
    for one, other in zip(answers[1:], batched.run(clip[1:], batch=3), strict=True):
        torch.testing.assert_close(one["prob"], other["prob"], atol=1e-5, rtol=0)


def test_a_frame_that_nobody_asks_for_is_propagated(model: Patches, clip: torch.Tensor) -> None:
    shown, silent = model.new_session(), model.new_session()
    for t, frame in enumerate(clip):
        mask = first_mask(1) if t == 0 else None
        answer = shown.step(frame, mask=mask)
        last = silent.step(frame, mask=mask, need_output=t == FRAMES - 1)
        assert (last is None) == (t < FRAMES - 1)
    assert torch.equal(answer["prob"], last["prob"])


def test_a_later_mask_adds_moves_and_ends_objects(model: Patches, clip: torch.Tensor) -> None:
    session = model.new_session()
    session.step(clip[0], mask=first_mask(5, 9))
    session.step(clip[1])
    later = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    later[20:32, 20:36] = 7
    answer = session.step(clip[2], mask=later, objects=[5, 7])
    assert answer["object_ids"] == [5, 7, 9]
    assert (answer["mask"][22:30, 22:34] == 7).all()  # the mask goes before the prediction
    assert not (answer["mask"] == 5).any()  # listed without pixels: absent here
    assert (answer["mask"] == 9).any()
    torch.testing.assert_close(answer["prob"].sum(0), torch.ones(HEIGHT, WIDTH))
    answer = session.step(clip[3])
    assert (answer["mask"] == 7).any()
    for t in range(3 * FRAMES):  # the frame of the mask is seen by all later ones
        answer = session.step(clip[3 + t % 6])
    assert (answer["mask"] == 7).any()
    assert len(session._entries) == OPTIONS["context"] + 2
    answer = session.step(clip[4], remove=[7])
    assert answer["object_ids"] == [5, 9]
    torch.testing.assert_close(answer["prob"].sum(0), torch.ones(HEIGHT, WIDTH))
    session.step(clip[5], remove=[5, 9])
    assert session._entries == {}
    answer = session.step(clip[6], mask=first_mask(1))
    assert answer["object_ids"] == [1]


def test_a_saved_session_goes_on_in_the_same_bits(model: Patches, clip: torch.Tensor) -> None:
    session = model.new_session(norm_mask=True)
    for t, frame in enumerate(clip[:5]):
        session.step(frame, mask=first_mask(1, 2) if t == 0 else None)
    file = io.BytesIO()
    torch.save(session.state_dict(), file)
    file.seek(0)
    other = model.new_session(norm_mask=True)
    other.load_state_dict(torch.load(file, weights_only=True))
    for frame in clip[5:]:
        assert torch.equal(session.step(frame)["prob"], other.step(frame)["prob"])


def test_equal_labels_of_a_cell_become_zero_and_spread_no_nan(
    model: Patches, clip: torch.Tensor
) -> None:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    mask[:, 2:22] = 1  # the middle of a cell: background and object are 1/2 each
    session = model.new_session(norm_mask=True)
    for t, frame in enumerate(clip):
        answer = session.step(frame, mask=mask if t == 0 else None)
        assert bool(answer["prob"].isfinite().all())
    assert (answer["mask"] == 1).any()


def test_a_first_mask_without_background(model: Patches, clip: torch.Tensor) -> None:
    mask = torch.ones(HEIGHT, WIDTH, dtype=torch.uint8)
    mask[:, 20:] = 2
    first = torch.stack([mask == 1, mask == 2]).float()
    expected = propagate_by_rule(model, clip, first, norm_mask=True)
    session = model.new_session(norm_mask=True)
    for t, frame in enumerate(clip):
        answer = session.step(frame, mask=mask if t == 0 else None)
        wanted = F.interpolate(expected[t][None], (HEIGHT, WIDTH), mode="bilinear")[0]
        torch.testing.assert_close(answer["prob"][1:], wanted, atol=1e-5, rtol=0)
        assert not (answer["mask"] == 0).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 0}, "context=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"radius": 0}, "radius=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"long_mem": (-1,)}, "long_mem"),
        ({"videoLen": 20}, "no option 'videoLen'.*context"),
    ],
)
def test_options_out_of_range_are_refused(model: Patches, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        model.new_session(**options)


def test_the_session_is_for_models_in_eval_mode(model: Patches) -> None:
    with pytest.raises(InputError, match="eval mode"):
        ContextSession(model.train())
