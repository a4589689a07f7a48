"""Scores of DAVIS as a table in the log and as files: the toolkit's two CSV files and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from vss2.data.image_io import write_bytes
from vss2.evaluation.davis_scores import METRICS, STATISTICS


def in_percent(scores: Mapping[str, float], keys: Sequence[str]) -> dict[str, float]:
    """The values of `keys` times 100."""
    return {key: 100.0 * float(scores[key]) for key in keys}


def davis_table(scores: Mapping[str, Any], title: str) -> str:
    """Readable tables of one result of `score_davis`, all values in percent."""
    objects = scores["per_object"]
    rows = [
        [name, *(f"{100 * row[key]:.1f}" for key in STATISTICS)] for name, row in objects.items()
    ]
    return (
        f"{title}: {len(objects)} objects, all values in %\n"
        f"{_table([[f'{100 * scores[key]:.2f}' for key in METRICS]], METRICS)}\n"
        f"{_table(rows, ('object', *STATISTICS))}"
    )


def _table(rows: list[list[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


def write_davis_report(
    folder: Path, dataset_name: str, task: str, scores: Mapping[str, Any]
) -> None:
    """Write the scores, each file atomically; none of them is ever read again.

    `global_results-<set>.csv` and `per-sequence_results-<set>.csv` are the official toolkit's:
    fractions of three decimals. `results.json` holds everything in percent at full precision.

    Raises:
        InputFileError: a file cannot be written.
    """
    objects = scores["per_object"]
    table = [[f"{scores[key]:.3f}" for key in METRICS]]
    _write_csv(folder / f"global_results-{dataset_name}.csv", METRICS, table)
    _write_csv(
        folder / f"per-sequence_results-{dataset_name}.csv",
        ("Sequence", "J-Mean", "F-Mean"),
        ([name, f"{row['J-Mean']:.3f}", f"{row['F-Mean']:.3f}"] for name, row in objects.items()),
    )
    result = {
        "dataset": dataset_name,
        "unit": "%",
        "task": task,
        "objects": len(objects),
        "scores": in_percent(scores, METRICS),
        "per_sequence": {
            name: in_percent(row, METRICS) for name, row in scores["per_sequence"].items()
        },
        "per_object": {name: in_percent(row, STATISTICS) for name, row in objects.items()},
    }
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    write_bytes(folder / "results.json", text.encode())


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(path, buffer.getvalue().encode())
