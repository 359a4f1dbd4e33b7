"""The part of `srgan-fast upscale` that is for videos: its options, its progress, its summary."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srgan_fast.errors import IncompleteError, Interrupted, UsageError

if TYPE_CHECKING:
    from srgan_fast.upscaler import Upscaler

# What is taken for a video by its name; an input of another name is one where the output is.
SUFFIXES = frozenset(
    {".mp4", ".mkv", ".mov", ".webm", ".avi", ".ts", ".m4v", ".mpg", ".mpeg", ".wmv", ".gif", ".m2ts", ".nut", ".flv"}
)

_PANEL = "Video"
Codec = Annotated[
    str | None,
    typer.Option(
        help="auto (NVENC where it works, else x264; HEVC above 4096), or an encoder such as libx265.",
        show_default="auto",
        rich_help_panel=_PANEL,
    ),
]
Crf = Annotated[
    int | None, typer.Option(help="Quality: less is better and larger.", show_default="16", rich_help_panel=_PANEL)
]
Preset = Annotated[
    str | None,
    typer.Option(help="Speed of the encoder, by its own names.", show_default="that of the encoder", rich_help_panel=_PANEL),
]
TenBit = Annotated[
    bool, typer.Option("--ten-bit", help="Ten bits where the input has eight, too.", rich_help_panel=_PANEL)
]
Matrix = Annotated[
    str | None,
    typer.Option(
        help="bt601, bt709 or bt2020, where the input does not say or is wrong.",
        show_default="that of the input",
        rich_help_panel=_PANEL,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Refuse an output that cannot hold all of the input; fail where the input is damaged.",
        rich_help_panel=_PANEL,
    ),
]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--restart",
        help="Go on with what a stopped run has left, or throw that away.",
        show_default="resume",
        rich_help_panel=_PANEL,
    ),
]


def wanted(source: Path, target: Path) -> bool:
    """Whether this is a job for videos, by the names of its files."""
    return not source.is_dir() and any(path.suffix.lower() in SUFFIXES for path in (source, target))


def run(
    source: Path,
    target: Path,
    make: Callable[[], Upscaler],
    *,
    codec: str | None,
    crf: int | None,
    preset: str | None,
    ten_bit: bool,
    matrix: str | None,
    strict: bool,
    resume: bool | None,
) -> None:
    """Upscale a video, stop in good order when asked to, and say what became of it.

    Raises:  IncompleteError if something of the input is missing in the output; Interrupted
    """
    from srgan_fast.stop import stop_requests
    from srgan_fast.video import job

    options = job.VideoOptions(
        codec=codec or "auto",
        crf=crf,
        preset=preset,
        ten_bit=ten_bit,
        matrix=matrix or "auto",
        strict=strict,
        restart=resume is False,
    )
    if target.is_dir():
        target = target / source.name
    job.check_paths(source, target)
    with stop_requests(insistent=(signal.SIGINT, signal.SIGTERM)) as asked:
        upscaler = make()
        try:
            with _Shown() as shown:
                summary = job.upscale_video(source, target, upscaler, options, progress=shown, stop=asked)
        except KeyboardInterrupt:
            _at_once(f"stopped at once; what is finished is in {job.folder_of(target)}, the same command goes on")
    for line in summary.lines():
        print(line)
    if summary.missing:
        raise IncompleteError(f"{target} is incomplete: {summary.missing[0]}")
    if strict and summary.damage:
        raise IncompleteError(f"{target} was made of a damaged input: {summary.damage[0]}")
