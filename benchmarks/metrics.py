"""VC8, VC16 and confusion of one video: vss2 against a plain script with a loop over windows.

    python benchmarks/metrics.py

The plain script does what the published scripts do: for every window it compares each of its
frames with the first one, for labels and predictions; for every frame it counts a joint histogram
with `np.bincount` and, for the table form of the scores, three areas with `np.histogram`. Both
must give the same numbers. A second line leaves the table form out of the plain script (vss2 always
gives it).
"""

from __future__ import annotations

import numpy as np
from interleaved import finish, interleave, parser, result, set_threads

from vss2.evaluation import score_vss

NUM_CLASSES, FRAMES, HEIGHT, WIDTH = 124, 64, 480, 853


def reduced(raw: np.ndarray) -> np.ndarray:
    """The published label mapping: 0 and 255 are void, class = value - 1."""
    labels = raw.copy()
    labels[labels == 0] = 255
    labels -= 1
    labels[labels == 254] = 255
    return labels


def table_form(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """mIoU and aAcc of the published table: areas pooled over frames."""
    areas = np.zeros((3, NUM_CLASSES))
    bins = np.arange(NUM_CLASSES + 1)
    for label, prediction in zip(labels, predictions, strict=True):
        valid = label != 255
        truth, guess = label[valid], prediction[valid]
        for area, values in zip(areas, (guess[guess == truth], guess, truth), strict=True):
            area += np.histogram(values, bins=bins)[0]
    both, guessed, true = areas
    with np.errstate(invalid="ignore"):
        iou = both / (guessed + true - both)
    return {"mIoU": float(np.nanmean(iou)), "aAcc": float(both.sum() / true.sum())}


def plain_script(raw: np.ndarray, predictions: np.ndarray, table: bool = True) -> dict[str, float]:
    """Frame scores, VC8 and VC16 by the published rules, window by window."""
    labels = np.stack([reduced(frame) for frame in raw])
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    for label, prediction in zip(labels, predictions, strict=True):
        valid = (label >= 0) & (label < NUM_CLASSES)
        joint = NUM_CLASSES * label[valid].astype(int) + prediction[valid]
        confusion += np.bincount(joint, minlength=NUM_CLASSES**2).reshape(confusion.shape)
    hit, truth = np.diag(confusion), confusion.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hit / (truth + confusion.sum(0) - hit)
    present = truth > 0
    scores = {
        "mIoU_e": float(iou[present].mean()),
        "fwIoU": float((truth[present] / truth.sum() * iou[present]).sum()),
    }
    if table:
        scores |= table_form(labels, predictions)
    for length in (8, 16):
        ratios = []
        for start in range(len(labels) - length):
            fixed = np.ones(labels.shape[1:])
            steady = np.ones(labels.shape[1:])
            for offset in range(1, length):
                fixed = np.logical_and(fixed, labels[start] == labels[start + offset])
                steady = np.logical_and(steady, predictions[start] == predictions[start + offset])
            ratios.append((fixed * steady).sum() / fixed.sum())
        scores[f"VC{length}"] = float(np.mean(ratios))
    return scores


def video(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Raw labels of drifting patches, and predictions that flicker: uint8 (T, H, W)."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, NUM_CLASSES + 1, (HEIGHT // 32 + 1, WIDTH // 32 + 8), np.uint8)
    still = np.kron(patches, np.ones((32, 32), np.uint8))
    raw = np.stack([still[:HEIGHT, t : t + WIDTH] for t in range(FRAMES)])
    predictions = np.where(raw == 0, 0, raw - 1).astype(np.uint8)
    # Errors are blobs: networks predict at a quarter of the size.
    wrong = rng.random((FRAMES, HEIGHT // 4, WIDTH // 4 + 1)) < 0.1
    wrong = wrong.repeat(4, axis=1).repeat(4, axis=2)[..., :WIDTH]
    predictions[wrong] = rng.integers(0, NUM_CLASSES, int(wrong.sum()) // 16 + 1, np.uint8).repeat(
        16
    )[: int(wrong.sum())]
    return raw, predictions


def main() -> None:
    args = parser(__doc__.splitlines()[0], rounds=7).parse_args()
    set_threads(1)
    raw, predictions = video()
    plain = plain_script(raw, predictions)
    ours = score_vss([("video", raw, predictions)], NUM_CLASSES)
    for name, value in plain.items():
        assert abs(value - ours[name]) < 1e-12, (name, value, ours[name])
    times = interleave(
        {
            "plain": lambda: plain_script(raw, predictions),
            "plain without table": lambda: plain_script(raw, predictions, table=False),
            "vss2": lambda: score_vss([("video", raw, predictions)], NUM_CLASSES),
        },
        args.rounds,
    )
    what = f"metrics of {FRAMES} frames of {HEIGHT}x{WIDTH}"
    results = [
        result(f"{what}, {name} / vss2", times, name, "vss2", wanted)
        for name, wanted in (("plain", "at least 8"), ("plain without table", "at least 8"))
    ]
    finish(results, args.json)


if __name__ == "__main__":
    main()
