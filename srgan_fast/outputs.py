"""Where a result goes: what would fail when the work is done is refused before it begins; how a file is written."""

from __future__ import annotations

import os
from pathlib import Path

from srgan_fast.atomic import atomic
from srgan_fast.errors import OutputError


def same(one: Path, other: Path) -> bool:
    """Whether two names mean one file, by links of either kind too."""
    try:
        # Not Path.resolve, which fails of a link that leads to itself.
        return os.path.realpath(one) == os.path.realpath(other) or (other.exists() and one.samefile(other))
    except OSError:
        return False


def make_folder(folder: Path) -> None:
    """Make a folder for results, where it is not there.

    Raises:  OutputError if it cannot be made
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}; name another one") from error


def check_folder(folder: Path, target: Path) -> None:
    """Refuse a folder that is not there or cannot be written, into which `target` is to go.

    Raises:  OutputError
    """
    if not folder.is_dir():
        raise OutputError(f"cannot write {target}: {folder} is not a folder that exists; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {target}: no permission to write in {folder}; name another folder")


def check_file(name: str, target: Path) -> None:
    """Refuse a file that cannot be made, or be replaced; `name` is what the command line calls it, such as OUT.

    Raises:  OutputError
    """
    # A device or a pipe takes what comes; any other file is made anew, beside the one that is there.
    taken = target if target.exists() and not (target.is_file() or target.is_dir()) else target.parent
    if target.is_dir() or not target.parent.is_dir() or not os.access(taken, os.W_OK):
        raise OutputError(
            f"expected {name} to name a file in a folder that can be written, got {target}; name another, or make the"
            " folder first"
        )


def write(target: Path, content: bytes | str) -> None:
    """Write a file, whole or not at all; a text in UTF-8.

    Raises:  OutputError if it cannot be written
    """
    try:
        with atomic(target) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}; make room, or name another file") from error
