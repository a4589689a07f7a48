"""Errors that a user can cause and mend: one sentence, the culprit and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from the user. Tools print it as one line and exit with 2."""


class InputFileError(InputError, FileNotFoundError):
    """A file or folder that the user named is missing or cannot be read."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'a', 'b'?"` with up to three close matches of `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=3, cutoff=0.5)
    return f" Did you mean {', '.join(repr(c) for c in close)}?" if close else ""
