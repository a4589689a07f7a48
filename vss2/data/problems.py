"""Faulty data at training time: an error, or a list of what was passed over.

Loading functions of data sets call `problem(error)` for what spoils one video only. By default it
raises; inside `collected_problems()` the error is put on a list and the loading function leaves the
video out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from vss2.errors import InputError, did_you_mean

ON_ERROR = ("error", "skip")

_collected: ContextVar[list[InputError] | None] = ContextVar("collected_problems", default=None)


def check_on_error(value: str) -> str:
    """`value` if it is "error" or "skip".

    Raises:
        InputError: it is something else.
    """
    if value not in ON_ERROR:
        raise InputError(
            f"on_error is 'error' or 'skip', got {value!r}.{did_you_mean(str(value), ON_ERROR)}"
        )
    return value


@contextlib.contextmanager
def collected_problems() -> Iterator[list[InputError]]:
    """A list that receives what `problem` is called with, instead of raising it."""
    problems: list[InputError] = []
    token = _collected.set(problems)
    try:
        yield problems
    finally:
        _collected.reset(token)


def problem(error: InputError) -> None:
    """Raise `error`, or put it on the list of the enclosing `collected_problems`."""
    problems = _collected.get()
    if problems is None:
        raise error
    problems.append(error)
