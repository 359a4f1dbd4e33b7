"""The part of `srgan-fast upscale` that is for folders: what is to be done in one, and what is finished."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from srgan_fast.cli import video
from srgan_fast.errors import InputError, UsageError
from srgan_fast.outputs import same

Job = tuple[Path, Path]


class Jobs(NamedTuple):
    """The (input, output) pairs that are still to do, how many are finished, and what kinds of file there are."""

    images: list[Job]
    videos: list[Job]
    finished: int
    kinds: str
    any_videos: bool
    first_image: Path | None


def jobs_of(source: Path, target: Path, suffix: str | None, overwrite: bool) -> Jobs:
    """What is to do for a folder: its images and videos, mirrored below `target`, in a fixed order.

    Raises:  UsageError where results would collide, or overwrite inputs; InputError where there is nothing to upscale
    """
    from srgan_fast.image import IMAGE_SUFFIXES

    file = target.suffix.lower() in IMAGE_SUFFIXES | video.SUFFIXES
    if not target.is_dir() and (target.exists() or file):
        raise UsageError(f"{source} is a folder, so the output must be one too, got the file {target}")
    pairs: list[Job] = []
    owners: dict[Path, Path] = {}
    for path in _files(source, target):
        result = target / path.relative_to(source)
        if path.suffix.lower() in video.SUFFIXES:
            result = video.written_as(result)
        elif suffix is not None:
            result = result.with_suffix(suffix)
        if (other := owners.setdefault(result, path)) != path:
            raise UsageError(f"{other} and {path} would both become {result}; rename one, or leave --format out")
        pairs.append((path, result))
    if not pairs:
        kinds = ", ".join([*sorted(IMAGE_SUFFIXES), *sorted(video.SUFFIXES)])
        raise InputError(f"expected images or videos ({kinds}) under {source}, got none")
    inputs = {os.path.realpath(path) for path, _ in pairs}
    for _, result in pairs:
        if os.path.realpath(result) in inputs:
            raise UsageError(f"{result} is an input and would be overwritten; name an output folder of its own")
    todo = [job for job in pairs if overwrite or not _finished(*job)]
    films = [path for path, _ in pairs if path.suffix.lower() in video.SUFFIXES]
    pictures = [path for path, _ in pairs if path.suffix.lower() in IMAGE_SUFFIXES]
    return Jobs(
        [job for job in todo if job[0].suffix.lower() in IMAGE_SUFFIXES],
        [job for job in todo if job[0].suffix.lower() in video.SUFFIXES],
        len(pairs) - len(todo),
        "files" if films and pictures else "videos" if films else "images",
        bool(films),
        pictures[0] if pictures else None,
    )


def _files(source: Path, target: Path) -> Iterator[Path]:
    """Images and videos in a fixed order, without an output folder inside; links to folders stay aside, as do parts."""
    from srgan_fast.image import IMAGE_SUFFIXES

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror}; check its permissions")

    for folder, folders, files in os.walk(source, onerror=refuse):
        folders[:] = sorted(n for n in folders if not (n.endswith(".parts") or same(Path(folder, n), target)))
        for name in sorted(files):
            # macOS leaves a ._NAME of metadata beside each file on foreign disks.
            if Path(name).suffix.lower() in IMAGE_SUFFIXES | video.SUFFIXES and not name.startswith("._"):
                yield Path(folder, name)


def _finished(source: Path, target: Path) -> bool:
    """Results appear whole or not at all, so one that is there is finished, unless the input has changed since."""
    try:
        before, after = source.stat(), target.stat()
    except OSError:
        return False
    return after.st_size > 0 and after.st_mtime_ns >= before.st_mtime_ns
