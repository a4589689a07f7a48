from __future__ import annotations

import pytest
import torch

from vss2.modeling.losses import resize_scores
from vss2.modeling.resize import CLASS_CHUNK, resized_labels
from vss2.modeling.session import finalize

SIZES = {
    "published": ((24, 40), (23, 39)),
    "equal": ((24, 40), (24, 40)),
    "uneven": ((33, 47), (71, 29)),
    "smaller": ((9, 11), (5, 3)),
    "one pixel": ((1, 1), (4, 4)),
}


def scores_of(classes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, classes, 6, 10, generator=generator)


@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("classes", [1, 2, CLASS_CHUNK, CLASS_CHUNK + 1, 124, 255])
def test_labels_equal_the_plain_way(name: str, classes: int) -> None:
    network, output = SIZES[name]
    scores = scores_of(classes)
    resized = resize_scores(resize_scores(scores, network), output)[0]
    labels = finalize(scores, network, output, labels_only=True)["labels"]
    assert labels.dtype == torch.uint8
    assert labels.shape == output
    assert torch.equal(labels, resized.argmax(0).to(torch.uint8))
    assert torch.equal(finalize(scores, network, output, labels_only=False)["sem_seg"], resized)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_are_resized_in_float32(dtype: torch.dtype) -> None:
    scores = scores_of(40).to(dtype)
    expected = resize_scores(scores.float(), (30, 44)).argmax(1)[0]
    assert torch.equal(resized_labels(scores, (30, 44)), expected.to(torch.uint8))


def test_the_lowest_class_wins_among_equals() -> None:
    scores = torch.zeros(1, 3 * CLASS_CHUNK, 4, 4)
    scores[:, [CLASS_CHUNK + 3, 2 * CLASS_CHUNK + 1]] = 1.0
    assert resized_labels(scores, (8, 8)).unique().tolist() == [CLASS_CHUNK + 3]


def test_one_resize_where_the_output_has_the_input_size(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, calls = 0, []
    interpolate = torch.nn.functional.interpolate

    def counted(x: torch.Tensor, **options: object) -> torch.Tensor:
        nonlocal largest
        calls.append(options["size"])
        out = interpolate(x, **options)
        largest = max(largest, out.numel())
        return out

    monkeypatch.setattr(torch.nn.functional, "interpolate", counted)
    resized_labels(scores_of(64), (24, 40), (24, 40))
    assert calls == [[24, 40]] * 4
    assert largest == CLASS_CHUNK * 24 * 40  # never a map of all classes
