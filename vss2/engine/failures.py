"""What a run says when its disk gives out: one sentence, in place of tracebacks."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from vss2.errors import InputError, InputFileError

# Not enough space, no more quota, read-only, broken.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Context in which a disk that gives out is the user's mistake, not a defect.

    Raises:
        InputFileError: instead of the OSError; of several, one after the other, the first.
    """
    try:
        yield
    except OSError as e:
        if e.errno not in DISK:
            raise
        first = e.__context__
        if isinstance(first, InputError):
            raise first from None
        place = e.filename or folder
        raise InputFileError(f"cannot write {place}: {os.strerror(e.errno)}") from e


class ShortErrors(logging.Filter):
    """Lets a logger say a user's mistake in one line, without its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, InputError) or (isinstance(error, OSError) and error.errno in DISK):
            record.msg, record.args, record.exc_info = f"{record.getMessage()} {error}", (), None
        return True


SHORT_ERRORS = ShortErrors()


def stop_when_disk_is_full(handler: logging.Handler) -> None:
    """Let `handler` write no more once its disk gives out, and say so once."""
    assert isinstance(handler, logging.StreamHandler)
    usual = handler.handleError

    def handle(record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if getattr(handler.stream, "closed", False):
            return  # another handler with the same stream was here before
        if not isinstance(error, OSError) or error.errno not in DISK:
            usual(record)
            return
        with contextlib.suppress(OSError):
            handler.stream.close()  # what it still holds cannot be written
        name = getattr(handler.stream, "name", "its file")
        sys.stderr.write(f"the log ends here, cannot write {name}: {error.strerror}\n")

    handler.handleError = handle  # type: ignore[method-assign]
