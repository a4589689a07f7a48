"""Scores as tables in the log and as files: per-video CSV, JSON and a bar chart of the classes."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from vss2.data.image_io import write_bytes, write_image
from vss2.evaluation.confusion import FRAME_METRICS
from vss2.evaluation.scores import WINDOW_LENGTHS
from vss2.visualization import bar_chart

WINDOW_METRICS = tuple(f"{kind}{n}" for kind in ("VC", "consistency") for n in WINDOW_LENGTHS)
WINDOW_NUMBERS = tuple(f"{kind}{n}" for kind in ("windows", "undefined") for n in WINDOW_LENGTHS)
METRICS = (*FRAME_METRICS, *WINDOW_METRICS)


def in_percent(scores: Mapping[str, Any], class_names: Sequence[str]) -> OrderedDict[str, float]:
    """The metrics of `score_vss` times 100, then "IoU-<class>" for each class; nan stays nan."""
    result = OrderedDict((key, 100.0 * float(scores[key])) for key in METRICS)
    for name, iou in zip(class_names, scores["IoU"], strict=True):
        result[f"IoU-{name}"] = 100.0 * float(iou)
    return result


def _percent(value: float) -> str:
    """As the published tables print: round(100 x, 2)."""
    return "-" if math.isnan(value) else f"{round(100 * value, 2):.2f}"


def scores_table(scores: Mapping[str, Any], class_names: Sequence[str], title: str) -> str:
    """Readable tables of one result of `score_vss`; all values in percent, "-" where undefined."""
    videos = scores["per_video"]
    frames = sum(video["frames"] for video in videos.values())
    main = tabulate(
        [[_percent(scores[key]) for key in FRAME_METRICS]],
        headers=FRAME_METRICS,
        tablefmt="pipe",
        stralign="center",
        disable_numparse=True,
    )
    windows = [
        [
            str(n),
            _percent(scores[f"VC{n}"]),
            str(scores[f"windows{n}"]),
            str(scores[f"undefined{n}"]),
            _percent(scores[f"consistency{n}"]),
        ]
        for n in WINDOW_LENGTHS
    ]
    consistency = tabulate(
        windows,
        headers=("frames", "VC", "windows", "of these undefined", "consistency (label-aware)"),
        tablefmt="pipe",
        stralign="center",
        disable_numparse=True,
    )
    return (
        f"{title}: {len(videos)} videos, {frames} frames, all values in %\n{main}\n"
        f"Consistency over time:\n{consistency}\n"
        f"IoU per class:\n{_class_table(scores['IoU'], class_names)}"
    )


def _class_table(iou: Sequence[float], class_names: Sequence[str], columns: int = 4) -> str:
    """Classes with their IoU, read down the columns."""
    columns = min(columns, len(class_names))
    cells = [(name, _percent(value)) for name, value in zip(class_names, iou, strict=True)]
    height = math.ceil(len(cells) / columns)
    rows = [[text for cell in cells[i::height] for text in cell] for i in range(height)]
    return tabulate(
        rows,
        headers=["class", "IoU"] * columns,
        tablefmt="pipe",
        colalign=("left", "right") * columns,
        disable_numparse=True,
    )


def write_report(
    output_dir: Path,
    dataset_name: str,
    scores: Mapping[str, Any],
    class_names: Sequence[str],
    settings: Mapping[str, Any],
) -> None:
    """Write per_video.csv, results.json and per_class_iou.png, each atomically; values in percent.

    Raises:
        InputFileError: a file cannot be written.
    """
    write_bytes(output_dir / "per_video.csv", _per_video_csv(scores["per_video"]).encode())
    percent = in_percent(scores, class_names)
    result = {
        "dataset": dataset_name,
        "unit": "%",
        "settings": dict(settings),
        "videos": len(scores["per_video"]),
        "frames": sum(video["frames"] for video in scores["per_video"].values()),
        **{key: scores[key] for key in WINDOW_NUMBERS},
        "scores": {key: _json_number(percent[key]) for key in METRICS},
        "IoU": {name: _json_number(percent[f"IoU-{name}"]) for name in class_names},
    }
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    write_bytes(output_dir / "results.json", text.encode())
    chart = bar_chart(
        class_names,
        [100.0 * iou for iou in scores["IoU"]],
        f"{dataset_name}: IoU per class in %, mIoU {_percent(scores['mIoU'])}",
        maximum=100,
    )
    write_image(output_dir / "per_class_iou.png", chart)


def _json_number(value: float) -> float | None:
    """`value`, or None (null): JSON has no nan."""
    return None if math.isnan(value) else value


def _per_video_csv(per_video: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a video; percent columns say so in the header; empty where undefined."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["video", "frames", *(f"{key} [%]" for key in METRICS), *WINDOW_NUMBERS])
    for name, scores in per_video.items():
        values = [100.0 * scores[key] for key in METRICS]
        cells = ["" if math.isnan(value) else f"{value:.4f}" for value in values]
        writer.writerow([name, scores["frames"], *cells, *(scores[key] for key in WINDOW_NUMBERS)])
    return buffer.getvalue()
