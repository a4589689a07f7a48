"""Command-line tools: `tools/*.py` and the console script `vss2` are thin doors to these."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from vss2.errors import InputError

BAD_INPUT = 2
INTERRUPTED = 130


def run_tool(func: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None) -> int:
    """Run the body of a tool and turn its end into an exit code.

    A user's mistake (InputError) is one line on stderr and exit 2, Ctrl-C is exit 130; any other
    exception is a defect and keeps its traceback.
    """
    try:
        return func(argv) or 0
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as e:
        print(str(e) or "interrupted", file=sys.stderr)
        return INTERRUPTED
