"""The part of `srgan-fast upscale` that is for videos: its options, its progress, its summary."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn, cast

import typer

from srgan_fast.cli.crew import Wish
from srgan_fast.errors import IncompleteError, Interrupted, SRGANFastError, UsageError
from srgan_fast.outputs import make_folder

if TYPE_CHECKING:
    from srgan_fast.cli.progress import VideoProgress
    from srgan_fast.upscaler import Upscaler
    from srgan_fast.video.colour import Matrix
    from srgan_fast.video.job import VideoOptions
    from srgan_fast.video.schedule import Outcome
    from srgan_fast.video.summary import Summary
    from srgan_fast.video.workers import Crew

# What is taken for a video by its name; an input of another name is one where the output is.
SUFFIXES = frozenset(
    {".mp4", ".mkv", ".mov", ".webm", ".avi", ".ts", ".m4v", ".mpg", ".mpeg", ".wmv", ".gif", ".m2ts", ".nut", ".flv"}
)

# Workers, or None where this process does it.
Hands = Callable[[], "AbstractContextManager[Crew] | None"]

_PANEL = "Video"
Codec = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Encoder: auto (NVENC where it works, else x264; HEVC above 4096 pixels a side), or one such as libx265.",
        show_default="auto",
        rich_help_panel=_PANEL,
    ),
]
Crf = Annotated[
    float | None,
    typer.Option(
        help="Quality in the encoder's own measure: less is better and larger.",
        show_default="18 for libx264, others have their own",
        rich_help_panel=_PANEL,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Speed of the encoder, by its own names.",
        show_default="medium for libx264, others have their own",
        rich_help_panel=_PANEL,
    ),
]
TenBit = Annotated[
    bool,
    typer.Option("--ten-bit", help="Write ten bits a channel where the input has eight, too.", rich_help_panel=_PANEL),
]
MatrixName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Colour matrix, where the input does not say it or is wrong: bt601, bt709 or bt2020.",
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
ReuseName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Compute only what has changed since the frame before: auto or off; the result is the same.",
        show_default="auto",
        rich_help_panel=_PANEL,
    ),
]


class Choice(NamedTuple):
    """The options of videos as a user has given them."""

    codec: str | None = None
    crf: float | None = None
    preset: str | None = None
    ten_bit: bool = False
    matrix: str | None = None
    strict: bool = False
    resume: bool | None = None
    reuse: str | None = None
    wish: Wish = Wish()

    def given(self) -> list[str]:
        """The names of those that were given."""
        said = {**self._asdict(), **self.wish._asdict()}
        usual = {**Choice()._asdict(), **Wish()._asdict()}
        names = [name for name in said if name != "wish" and said[name] != usual[name]]
        return ["--" + name.replace("_", "-") for name in names]

    def check(self) -> None:
        """Refuse words that mean nothing here.

        Raises:  UsageError
        """
        if self.matrix not in (None, "bt601", "bt709", "bt2020"):
            raise UsageError(f"expected --matrix bt601, bt709 or bt2020, got {self.matrix!r}")
        if self.reuse not in (None, "auto", "off"):
            raise UsageError(f"expected --reuse auto or off, got {self.reuse!r}")


def wanted(source: Path, target: Path) -> bool:
    """Whether this is a job for videos, by the names of its files."""
    return not source.is_dir() and any(path.suffix.lower() in SUFFIXES for path in (source, target))


def written_as(target: Path) -> Path:
    """The name of a result of a folder: that of the input, or .mkv where nothing of its kind is written."""
    from srgan_fast.video.mux import CONTAINERS

    return target if target.suffix.lower() in CONTAINERS else target.with_suffix(".mkv")


def run(source: Path, target: Path, make: Callable[[], Upscaler], choice: Choice, hands: Hands) -> None:
    """Upscale a video, stop in good order when asked to, and say what became of it.

    `make` builds the upscaler, which takes seconds: whatever can be refused before is. `hands` gives the workers.

    Raises:  IncompleteError if something of the input is missing in the output; Interrupted
    """
    from srgan_fast.video import job
    from srgan_fast.video.source import Source

    options = options_of(choice)
    target = job.real(target / source.name if target.is_dir() else target)
    job.check_target(source, target)
    with Source(source, matrix=options.matrix):
        pass
    with closing(_outcomes([(source, target)], make, options, hands, f"in {job.folder_of(target)}")) as outcomes:
        for outcome in outcomes:
            if failure := _told(outcome, options):
                raise failure


def run_many(
    jobs: Sequence[tuple[Path, Path]],
    make: Callable[[], Upscaler],
    options: VideoOptions,
    hands: Hands,
    done: list[tuple[Path, Path]],
) -> tuple[list[SRGANFastError], int]:
    """Upscale videos and say what became of each, noting in `done` what is written whole.

    Gives what failed, and the number of frames of the others.

    Raises:  Interrupted
    """
    from srgan_fast.video.summary import Summary

    failures: list[SRGANFastError] = []
    frames = 0
    for _, target in jobs:
        make_folder(target.parent)
    with closing(_outcomes(jobs, make, options, hands, "beside the outputs")) as outcomes:
        for outcome in outcomes:
            if failure := _told(outcome, options):
                failures.append(failure)
                print(f"failed: {failure}", file=sys.stderr)
            elif isinstance(outcome.result, Summary):
                done.append((outcome.source, outcome.target))
                frames += outcome.result.frames - outcome.result.resumed
    return failures, frames


def _outcomes(
    jobs: Sequence[tuple[Path, Path]], make: Callable[[], Upscaler], options: VideoOptions, hands: Hands, where: str
) -> Generator[Outcome, None, None]:
    """What becomes of videos, by this process or by others; `where` is where the parts of finished segments lie."""
    from srgan_fast.stop import stop_requests
    from srgan_fast.video.job import folder_of, upscale_video
    from srgan_fast.video.schedule import Outcome, upscale_videos

    with stop_requests(insistent=(signal.SIGINT, signal.SIGTERM)) as asked, _Shown() as shown:
        try:
            with ExitStack() as stack:
                if (workers := hands()) is not None:
                    crew = stack.enter_context(workers)
                    for outcome in upscale_videos(jobs, crew, options, progress=shown, stop=asked):
                        shown.end()
                        yield outcome
                    return
                upscaler = make()
                for source, target in jobs:
                    result: Summary | SRGANFastError
                    try:
                        result = upscale_video(source, target, upscaler, options, progress=shown, stop=asked)
                    except Interrupted:
                        raise
                    except SRGANFastError as error:
                        result = error
                    shown.end()
                    yield Outcome(source, target, result)
        except KeyboardInterrupt:
            kept = any(folder_of(target).exists() for _, target in jobs)
            shown.end()
            _end_at_once(
                "stopped at once; "
                + (f"finished segments are {where}, the same command goes on" if kept else "nothing is kept")
            )


def _told(outcome: Outcome, options: VideoOptions) -> SRGANFastError | None:
    """Say what became of a video; gives what is wrong with it."""
    summary, target = outcome.result, outcome.target
    if isinstance(summary, SRGANFastError):
        return summary
    for line in summary.lines():
        print(line, flush=True)
    if summary.missing:
        return IncompleteError(f"{target} was written, but lacks {summary.missing[0]}")
    if options.strict and summary.damage:
        return IncompleteError(f"{target} was written, but {summary.damage[0]}")
    return None


def options_of(choice: Choice) -> VideoOptions:
    """What the options mean.

    Raises:  UsageError
    """
    from srgan_fast.video.job import VideoOptions

    choice.check()
    return VideoOptions(
        codec=choice.codec or "auto",
        crf=choice.crf,
        preset=choice.preset,
        ten_bit=choice.ten_bit,
        matrix=cast("Matrix | None", choice.matrix),
        strict=choice.strict,
        restart=choice.resume is False,
        reuse="off" if choice.reuse == "off" else "auto",
    )


def _end_at_once(said: str) -> NoReturn:
    """Raise Interrupted; where a thread is still within a long call, end the process without waiting for it."""
    from srgan_fast.video.pipeline import THREAD_NAME

    if any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()):
        print(f"srgan-fast: {said}", file=sys.stderr, flush=True)
        os._exit(Interrupted.exit_code)
    raise Interrupted(said)


class _Shown:
    """The progress, from the first frame on: only then is it known how many there were before."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._progress: VideoProgress | None = None

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Clear the line for what is said next; the next frame begins anew."""
        self._stack.close()
        self._progress = None

    def __call__(self, frames: int, total: int | None, busy_s: Mapping[str, float]) -> None:
        from srgan_fast.cli.progress import VideoProgress

        if self._progress is None:
            self._progress = self._stack.enter_context(VideoProgress(total, frames - 1))
        self._progress(frames, busy_s)
