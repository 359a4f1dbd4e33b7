"""Folders that are the user's own: what is kept in them runs as native code later, so nobody else may write to it.

All caches of compiled code lie under one folder, each in one of its own. A file there is whole or not there, and is
read only if it is the user's own as well: a folder may have been open to others for a while.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from srgan_fast.atomic import atomic
from srgan_fast.errors import BackendUnavailable, OutputError

CURE = "set SRGAN_FAST_CACHE to a folder of your own"

# What a process that was killed while it wrote has left is removed when no process can be writing it any more.
_ABANDONED_S = 3600
_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def folder(name: str) -> Path:
    """The folder of the cache called `name`, made if it is missing: below SRGAN_FAST_CACHE, or the user's caches.

    Raises:  BackendUnavailable if it cannot be made, is another user's, or others may write into it
    """
    given, base = os.environ.get("SRGAN_FAST_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(base) if base else Path.home() / ".cache"
        found = (Path(given) if given else home / "srgan-fast") / name
        found.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = found.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows the user's home
        raise BackendUnavailable(f"{error}; {CURE}") from error
    if about.st_uid != os.geteuid():
        raise BackendUnavailable(f"{found} belongs to another user; {CURE}")
    if about.st_mode & _OTHERS_WRITE:
        raise BackendUnavailable(f"others may write into {found}; chmod go-w it if that was never so, or {CURE}")
    return found


def read(path: Path) -> bytes | None:
    """A file of such a folder; None if there is none, if it is another user's, or if others may write to it."""
    try:
        # Asked of the open file, so that it cannot be another one by the time it is read.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            about = os.fstat(file.fileno())
            own = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & _OTHERS_WRITE
            return file.read() if own else None
    except OSError:
        return None


def write(path: Path, content: bytes) -> None:
    """Put a file that only the user may touch into such a folder.

    Raises:  OutputError, if the folder takes no file
    """
    try:
        if path.is_symlink():
            path.unlink()  # which `atomic` would follow, and `read` does not
        with atomic(path) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
    except OSError as error:
        raise OutputError(f"{path.parent} takes no file ({error.strerror or error}); make room, or {CURE}") from error


def sweep(place: Path) -> None:
    """Remove what processes that were killed while they wrote have left in such a folder."""
    with suppress(OSError):
        for path in place.iterdir():
            with suppress(OSError):  # another process removes some too
                if _PART.fullmatch(path.name) and time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()


@contextmanager
def locked(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    """Be the only process in a block that holds this lock, which the system gives back however a process ends.

    `on_wait` is called once if another process has it; the lock's file is gone when nobody does.

    Raises:  OutputError, if the folder takes no file
    """
    said = False
    while True:
        try:
            held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OutputError(f"{path.parent} takes no file ({error.strerror}); make room, or {CURE}") from error
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not said:
                    on_wait()
                    said = True
                fcntl.flock(held, fcntl.LOCK_EX)
            # Who had it before has removed the file: then another process may hold a new one of this name.
            if not _is_file(held, path):
                continue
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()
            return
        finally:
            os.close(held)


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except OSError:
        return False
