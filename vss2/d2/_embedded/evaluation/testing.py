"""Nested results of an evaluation as text and as flat keys."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts as one: `{"a": {"b": 1}, "c": 2}` becomes `{"a/b": 1, "c": 2}`."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update((f"{key}/{k}", v) for k, v in flatten_results_dict(value).items())
        else:
            flat[key] = value
    return flat


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the results as lines that can be pasted into a spreadsheet.

    Per task three lines, `copypaste: Task: <task>`, the metric names and their values to four
    digits; names with a `-` (per-class values) are left out. A task whose result is no mapping is
    one line `copypaste: <task>=<value>`. A value of None is a `TypeError`.
    """
    assert isinstance(results, Mapping) or not len(results), results
    logger = logging.getLogger(__name__)
    for task, result in results.items():
        if not isinstance(result, Mapping):
            logger.info("copypaste: %s=%s", task, result)
            continue
        shown = {name: value for name, value in result.items() if "-" not in name}
        values = ",".join(f"{value:.4f}" for value in shown.values())
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(shown))
        logger.info("copypaste: %s", values)
