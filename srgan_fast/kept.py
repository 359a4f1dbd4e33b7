"""What takes long to compile, kept in a private folder: found by key, whole or not at all, the least used removed.

Without a usable folder nothing is kept, which is said once, and everything else works as before.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from srgan_fast import private
from srgan_fast.errors import BackendUnavailable, OutputError

# A folder that was named by mistake may hold files of another kind, which are left alone.
_ENTRY = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


class Kept:
    """Entries of one kind, in the folder `name`; `what` they are is said in warnings.

    A key is 64 hexadecimal digits, of all that an entry depends on. An entry carries a digest, so that one that was cut
    short or altered is made anew. Of several processes that write the same, the last one's stays.
    """

    def __init__(self, name: str, what: str, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.warned: set[str] = set()
        self._name, self._what = name, what
        self._magic = f"srgan-fast {name} 1\n".encode()

    @property
    def usable(self) -> bool:
        """Whether there is a folder to keep something in."""
        return self._folder() is not None

    def read(self, key: str) -> bytes | None:
        """An entry; None if there is none, or a damaged one."""
        folder = self._folder()
        data = private.read(folder / key) if folder else None
        if data is None or folder is None:
            return None
        start = len(self._magic)
        digest, body = data[start : start + 64], data[start + 64 :]
        if not data.startswith(self._magic) or digest != _digest(key, body):
            return None
        with suppress(OSError):
            os.utime(folder / key)  # what was used last is removed last
        return body

    def write(self, key: str, body: bytes) -> None:
        """Keep an entry, if the folder takes it."""
        folder = self._folder()
        if folder is None:
            return
        try:
            private.write(folder / key, self._magic + _digest(key, body) + body)
        except OutputError as error:
            self._warn(str(error))

    def shrink(self) -> None:
        """Remove the entries that were not used for the longest time, until the rest are within the bound."""
        folder = self._folder()
        if folder is None:
            return
        private.sweep(folder)
        entries = []
        with suppress(OSError):
            for path in folder.iterdir():
                with suppress(OSError):  # another process removes some too
                    about = path.stat()
                    if _ENTRY.fullmatch(path.name) and stat.S_ISREG(about.st_mode):
                        entries.append((about.st_mtime, about.st_size, path))
        size = sum(entry[1] for entry in entries)
        for _, freed, path in sorted(entries):
            if size <= self.most_bytes:
                break
            with suppress(OSError):
                path.unlink()
                size -= freed

    def _folder(self) -> Path | None:
        try:
            return private.folder(self._name)
        except BackendUnavailable as error:
            self._warn(str(error))
            return None

    def _warn(self, reason: str) -> None:
        if reason not in self.warned:
            self.warned.add(reason)
            _log.warning("%s are not kept: %s", self._what, reason)


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + body).hexdigest().encode()
