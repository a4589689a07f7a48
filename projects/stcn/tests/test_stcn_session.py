"""Sessions of STCN: objects that come, go and are corrected; chunks; states; bounded memory."""

from __future__ import annotations

import itertools
import resource
import time
from typing import Any

import pytest
import torch
from stcn_cases import clip, masks_of, run, small

from vss2.errors import InputError
from vss2.modeling.memory_bank import MemoryBank, MemoryEntry
from vss2.projects.stcn import STCN
from vss2.projects.stcn.multi_scale import MultiScaleSession

HEIGHT, WIDTH = 44, 60


@pytest.fixture(scope="module")
def model() -> STCN:
    return small()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return clip(10, HEIGHT, WIDTH, seed=5)


def box(identity: int, top: int, left: int, size: int = 16) -> torch.Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    mask[top : top + size, left : left + size] = identity
    return mask


FIRST = box(2, 4, 4) + box(5, 24, 30)


def test_answers_have_the_users_ids_and_sizes(model: STCN, frames: torch.Tensor) -> None:
    session = model.new_session()
    before = session.step(frames[0])
    assert before["object_ids"] == []
    assert not before["mask"].any()
    assert before["prob"].shape == (1, HEIGHT, WIDTH)
    assert before["prob"].min() == 1
    answer = session.step(frames[1], mask=FIRST, output_size=(30, 50))
    assert answer["object_ids"] == [2, 5]
    assert answer["mask"].shape == (30, 50)
    assert answer["mask"].dtype == torch.uint8
    assert answer["prob"].shape == (3, 30, 50)
    assert set(answer["mask"].unique().tolist()) == {0, 2, 5}
    assert torch.allclose(answer["prob"].sum(0), torch.ones(30, 50), atol=1e-4)
    assert "prob" not in session.step(frames[2], labels_only=True)
    assert session.step(frames[3], need_output=False) is None
    assert session.step(frames[4])["frame_index"] == 4
    assert session.lag == 0
    assert list(session.finish()) == []
    with pytest.raises(InputError, match="finished"):
        session.step(frames[5])
    session.reset()
    assert session.step(frames[0])["object_ids"] == []


def test_the_given_mask_is_the_answer_where_it_lies(model: STCN, frames: torch.Tensor) -> None:
    answer = model.new_session().step(frames[0], mask=FIRST)
    assert torch.equal(answer["mask"], FIRST)


def test_ids_above_255(model: STCN, frames: torch.Tensor) -> None:
    mask = (FIRST == 2).int() * 70000 + (FIRST == 5).int() * 3
    answer = model.new_session().step(frames[0], mask=mask)
    assert answer["object_ids"] == [3, 70000]
    assert answer["mask"].dtype == torch.int32
    assert torch.equal(answer["mask"], mask)


@pytest.mark.parametrize(("protocol", "include_last"), [("davis", False), ("generic", True)])
def test_chunks_and_states_change_nothing(
    model: STCN, frames: torch.Tensor, protocol: str, include_last: bool
) -> None:
    options = {"protocol": protocol, "mem_every": 3, "include_last": include_last}
    session = model.new_session(**options)
    session.step(frames[0], mask=FIRST)
    whole = [session.step(frame)["prob"] for frame in frames[1:]]

    for batch in (1, 4):
        session = model.new_session(**options)
        session.step(frames[0], mask=FIRST)
        parts = [answer["prob"] for answer in session.run(frames[1:], batch=batch)]
        limit = 0 if batch == 1 else 1e-5
        assert max((a - b).abs().max() for a, b in zip(whole, parts, strict=True)) <= limit

    for stop in (0, 4, 6):
        session = model.new_session(**options)
        for t in range(stop):
            session.step(frames[t], mask=FIRST if t == 0 else None)
        other = model.new_session(**options)
        other.load_state_dict(roundtrip(session.state_dict()))
        for going in (session, other):
            for t in range(stop, len(frames)):
                answer = going.step(frames[t], mask=FIRST if t == 0 else None)
                assert t == 0 or torch.equal(answer["prob"], whole[t - 1])


def roundtrip(state: dict[str, Any]) -> dict[str, Any]:
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_frames_that_nobody_asks_for_change_nothing(model: STCN, frames: torch.Tensor) -> None:
    for options in ({"mem_every": 4}, {"mem_every": 4, "include_last": True}):
        all_of_them = run(model.new_session(**options), frames, {0: FIRST})
        some = run(model.new_session(**options), frames, {0: FIRST}, required=(0, 3, 6, 9))
        for answer in some:
            expected = all_of_them[answer["frame_index"]]
            assert torch.equal(answer["prob"], expected["prob"])


def test_frames_without_use_are_not_computed(
    model: STCN, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.new_session(mem_every=4)
    calls = []
    encode = session._network.encode
    monkeypatch.setattr(
        type(session._network), "encode", lambda _self, x: (calls.append(1), encode(x))[1]
    )
    for t, frame in enumerate(frames):
        session.step(frame, mask=FIRST if t == 0 else None, need_output=t == 9)
    assert len(calls) == 4  # 0, 4, 8 for the memory and 9


def test_objects_come_and_go(model: STCN, frames: torch.Tensor) -> None:
    session = model.new_session(protocol="generic", mem_every=2)
    session.step(frames[0], mask=FIRST)
    session.step(frames[1])
    answer = session.step(frames[2], mask=box(1, 20, 4))
    assert answer["object_ids"] == session.object_ids == [1, 2, 5]
    assert (answer["mask"] == 1).sum() == 256
    answer = session.step(frames[3], remove=(2,))
    assert answer["object_ids"] == [1, 5]
    assert 2 not in answer["mask"]
    assert answer["prob"].shape[0] == 3
    # Positions of 3x4 cells: frames 0 and 2 for object 5, frame 2 for object 1.
    session.step(frames[4])
    assert session.memory_positions() == {5: 2 * 12, 1: 12}
    answer = session.step(frames[5], remove=(1, 5))
    assert answer["object_ids"] == []
    assert not answer["mask"].any()
    answer = session.step(frames[6], mask=FIRST)
    assert answer["object_ids"] == [2, 5]
    with pytest.raises(InputError, match="object 9 to remove"):
        session.step(frames[7], remove=(9,))


def test_removal_leaves_the_others_as_if_they_were_alone_in_memory(
    model: STCN, frames: torch.Tensor
) -> None:
    """Values saw the removed object's mask; keys and the other values are untouched."""
    session = model.new_session(mem_every=2)
    for t in range(4):
        session.step(frames[t], mask=FIRST if t == 0 else None)
    before = session.state_dict()["memory"]["bank"]
    session.step(frames[4], remove=(2,), need_output=False)
    after = session._bank.state_dict()
    assert torch.equal(after["keys"][:2], before["keys"])
    assert torch.equal(after["values"][0][:2], before["values"][1])


def test_a_correction_counts_once(model: STCN, frames: torch.Tensor) -> None:
    session = model.new_session(protocol="generic", mem_every=3)
    for t in range(4):
        answer = session.step(frames[t], mask=FIRST if t == 0 else None)
    corrected = session.step(frames[4], mask=box(2, 8, 8))
    assert corrected["object_ids"] == [2, 5]
    assert torch.equal(corrected["mask"] == 2, box(2, 8, 8) == 2)
    session.step(frames[5])
    assert session.memory_positions() == {2: 3 * 12, 5: 3 * 12}
    answer = session.step(frames[6])
    assert torch.allclose(answer["prob"].sum(0), torch.ones(HEIGHT, WIDTH), atol=1e-4)


def test_objects_speaks_for_those_it_lists(model: STCN, frames: torch.Tensor) -> None:
    session = model.new_session(protocol="generic")
    session.step(frames[0], mask=FIRST)
    predicted = model.new_session(protocol="generic")
    predicted.step(frames[0], mask=FIRST)
    sure = predicted.step(frames[1])["prob"][2] > 0.5
    assert sure.any()
    # The mask holds both objects, but speaks for 2 alone, and says that it is absent.
    answer = session.step(frames[1], mask=box(5, 0, 0), objects=[2])
    assert not (answer["mask"] == 2).any()
    assert (answer["mask"][sure] == 5).all()
    # An object that is listed before it has pixels comes later.
    answer = session.step(frames[2], mask=torch.zeros_like(FIRST), objects=[7])
    assert answer["object_ids"] == [2, 5]
    assert session.step(frames[3], mask=box(7, 2, 40))["object_ids"] == [2, 5, 7]


def test_soft_maps_with_ids(model: STCN, frames: torch.Tensor) -> None:
    hard = model.new_session().step(frames[0], mask=FIRST)
    maps = torch.stack([FIRST == 5, FIRST == 2]).float()
    soft = model.new_session().step(frames[0], mask=maps, objects=[5, 2])
    assert torch.equal(hard["prob"], soft["prob"])
    half = model.new_session().step(frames[0], mask=0.5 * maps, objects=[5, 2])
    assert half["prob"][1][FIRST == 2].max() < 0.51


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"mask": torch.zeros(3, 4, dtype=torch.uint8)}, "frame's size"),
        ({"mask": FIRST.float()}, "integer type"),
        ({"mask": -FIRST.int()}, "0 .nothing said. or above"),
        ({"mask": FIRST[None].float()}, "one id each"),
        ({"mask": FIRST[None].float(), "objects": [2]}, "between 0 and 1"),
        ({"mask": FIRST, "objects": [0, 2]}, "ids above 0"),
        ({"mask": FIRST, "objects": [2, 2]}, "each once"),
        ({"mask": FIRST.numpy()}, "is a tensor"),
        ({"objects": [1]}, "without a mask"),
    ],
)
def test_what_a_step_refuses(
    model: STCN, frames: torch.Tensor, call: dict[str, Any], message: str
) -> None:
    session = model.new_session()
    with pytest.raises(InputError, match=message):
        session.step(frames[0], **call)
    assert session.step(frames[0])["frame_index"] == 0  # nothing happened


def test_frames_of_other_types_and_sizes_are_refused(model: STCN, frames: torch.Tensor) -> None:
    session = model.new_session()
    session.step(frames[0])
    for frame, message in (
        (frames[0].float(), "uint8 tensor"),
        (frames[0, 0], "3, H, W"),
        (frames[0, :, :40], "one size"),
    ):
        with pytest.raises(InputError, match=message):
            session.step(frame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "tv"}, "protocol is one of davis, youtube_vos, generic"),
        ({"mem_every": 0}, "mem_every is at least 1"),
        ({"top_k": 0}, "top_k"),
        ({"max_memory_frames": 1}, "max_memory_frames is at least 2"),
        ({"size": 8}, "size"),
        ({"kernel_sigma": 0.0}, "kernel_sigma"),
        ({"memory": 3}, "no option 'memory'; they take protocol, mem_every"),
    ],
)
def test_options_out_of_range(model: STCN, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.new_session(**options)


def test_a_session_needs_eval_mode() -> None:
    with pytest.raises(InputError, match="eval mode"):
        small().train().new_session()


def test_more_top_k_than_positions_takes_all(model: STCN, frames: torch.Tensor) -> None:
    few = run(model.new_session(top_k=12), frames[:3], {0: FIRST})
    many = run(model.new_session(top_k=500), frames[:3], {0: FIRST})
    assert torch.allclose(few[-1]["prob"], many[-1]["prob"], atol=1e-6)


def test_multi_scale_session(model: STCN, frames: torch.Tensor) -> None:
    scales = [{"size": 32}, {"size": 48, "flip": True, "kernel_sigma": 7.0}]
    session = model.new_session(mem_every=2, scales=scales)
    assert isinstance(session, MultiScaleSession)
    answers = run(session, frames[:5], {0: FIRST})
    assert answers[-1]["object_ids"] == [2, 5]
    assert answers[-1]["prob"].shape == (3, HEIGHT, WIDTH)
    session = model.new_session(mem_every=2, scales=scales)
    session.step(frames[0], mask=FIRST)
    other = model.new_session(mem_every=2, scales=scales)
    other.load_state_dict(roundtrip(session.state_dict()))
    again = list(other.run(frames[1:5], labels_only=True))
    assert torch.equal(masks_of(again), masks_of(answers[1:]))
    with pytest.raises(InputError, match="1 runs, this session has 2"):
        other.load_state_dict(model.new_session(scales=scales[:1]).state_dict())


def test_eval_forward_answers_required_frames(model: STCN, frames: torch.Tensor) -> None:
    items = [
        {
            "frame": frame,
            "video_id": "v",
            "frame_index": t,
            "first_frame": t == 0,
            "last_frame": t == 4,
            "height": 22,
            "width": 30,
            "file_name": f"{t}.jpg",
            "label_file": None,
            "required": t % 2 == 0,
        }
        for t, frame in enumerate(frames[:5])
    ]
    items[0] |= {"mask": FIRST, "objects": [2, 5], "session": {"mem_every": 2}}
    answers = model(items)
    assert [answer["frame_index"] for answer in answers] == [0, 2, 4]
    assert answers[0]["video_id"] == "v"
    assert answers[2]["file_name"] == "4.jpg"
    assert answers[1]["mask"].shape == (22, 30)
    assert answers[1]["object_ids"] == [2, 5]
    expected = run(model.new_session(mem_every=2), frames[:5], {0: FIRST}, output_size=(22, 30))
    for answer in answers:
        assert torch.equal(answer["mask"], expected[answer["frame_index"]]["mask"])
    with pytest.raises(InputError, match="first frame"):
        model(items[1:2])


def entry(value: float, objects: int = 1) -> MemoryEntry:
    return MemoryEntry(torch.full((2, 3), value), torch.full((objects, 2, 4), value))


def frames_in(bank: MemoryBank, position: int = 0) -> list[float]:
    return bank.state_dict()["values"][position][:, 0, 0].tolist()


def test_bounded_memory_keeps_the_first_frame_and_the_newest() -> None:
    bank = MemoryBank(20, None, 3)
    for t in range(6):
        bank.append(entry(t))
    assert frames_in(bank) == [0, 4, 5]
    bank.append(entry(6), temporary=True)
    assert frames_in(bank) == [0, 4, 5, 6]
    assert bank.num_frames == 4
    bank.append(entry(7), temporary=True)
    assert frames_in(bank) == [0, 4, 5, 7]
    bank.append(entry(8))
    assert frames_in(bank) == [0, 5, 8]


def test_bounded_memory_keeps_the_first_frame_of_each_object() -> None:
    bank = MemoryBank(20, None, 4)
    for t in range(3):
        bank.append(entry(t))
    for t in range(3, 8):
        bank.append(entry(t, objects=2))
    assert frames_in(bank) == [0, 3, 6, 7]
    assert frames_in(bank, 1) == [3, 6, 7]
    for t in range(8, 12):  # more objects than places: the oldest but the first goes
        bank.append(entry(t, objects=t - 5))
    assert [len(frames_in(bank, i)) for i in range(6)] == [4, 3, 3, 3, 2, 1]
    assert frames_in(bank) == [0, 9, 10, 11]
    bank.drop_object(5)
    bank.append(entry(12, objects=5))
    assert frames_in(bank, 4) == [10, 12]


def test_blocks_of_memory_are_read_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from vss2.modeling import memory_bank

    torch.manual_seed(0)
    entries = [MemoryEntry(torch.randn(6, 8), torch.randn(2, 6, 5)) for _ in range(7)]
    query = torch.randn(1, 8, 2, 3)
    read = []
    for block, similarities in ((16, 2**22), (3, 2**22), (2, 100)):
        monkeypatch.setattr(memory_bank, "BLOCK", block)
        monkeypatch.setitem(memory_bank.SIMILARITIES, "cpu", similarities)
        for sigma in (None, 1.5):
            bank = MemoryBank(4, sigma, None)
            for one in entries:
                bank.append(one)
            read.append(bank.read(query))
    for other in read[2:]:
        assert min((other - r).abs().max() for r in read[:2]) < 1e-6
    assert not torch.allclose(read[0], read[1])


def stream(model: STCN, count: int, size: tuple[int, int], **options: Any) -> Any:
    """A bounded session over `count` frames; yields after each."""
    session = model.new_session(protocol="generic", mem_every=2, **options)
    pictures = clip(16, *size, seed=1)
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 1
    for t, frame in zip(range(count), itertools.cycle(pictures), strict=False):
        session.step(frame, mask=mask if t == 0 else None, labels_only=True)
        yield session


def bytes_held(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return sum(bytes_held(part) for part in parts)


def test_a_bounded_session_holds_the_same_however_long_it_runs(model: STCN) -> None:
    held = {}
    for t, session in enumerate(stream(model, 300, (32, 48), max_memory_frames=6)):
        if t in (40, 299):
            held[t] = bytes_held(session.state_dict()), session.num_memory_frames
    assert held[40] == held[299]
    assert held[299][1] == 6


@pytest.mark.soak
def test_a_bounded_session_is_flat_over_5000_frames(model: STCN) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    durations, last = [], time.process_time()
    peak = 0
    for t, _ in enumerate(stream(model, 5000, (96, 160), max_memory_frames=20)):
        now = time.process_time()
        durations.append(now - last)
        last = now
        if t == 500:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.set_num_threads(threads)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    assert growth < 20, f"{growth:.1f} MB"
    early, late = (torch.tensor(part).median() for part in (durations[500:1500], durations[-1000:]))
    assert late / early < 1.1, f"{late / early:.3f}"
