"""Files that are whole or not there: the one way in which this package writes a result."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` when the block ends, and leaves nothing when it fails.

    A link stays a link, what it points to is replaced. A device or a pipe takes the bytes as they come.

    Raises:  OSError, of the system
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_file() or target.is_dir()):
        with target.open("wb") as file:
            yield file
        return
    # No suffix of ours: what a killed process leaves is never taken for a picture or for weights.
    part = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        # The mode that any new file gets here, which a temporary file's would not be.
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
