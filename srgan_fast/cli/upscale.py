"""`srgan-fast upscale`: an image, a folder of images or a video in, larger ones out; y4m video from pipe to pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srgan_fast.cli import crew, pipe, video
from srgan_fast.cli.folder import Job, Jobs, jobs_of
from srgan_fast.cli.options import BUNDLED, MEMORY, PRECISION, WEIGHTS, Device
from srgan_fast.errors import InputError, Interrupted, MemoryBudgetError, OutputError, SRGANFastError, UsageError
from srgan_fast.outputs import check_folder, make_folder, same

if TYPE_CHECKING:
    from srgan_fast.upscaler import Upscaler

_FOLDERS = "Folders"


def upscale(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Image, video, folder of them, or - for y4m on stdin.", readable=False)
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="Image, video or folder to write, or - for stdout.", readable=False)
    ],
    model: Annotated[str | None, typer.Option(metavar="NAME", help=f"{BUNDLED}.", show_default="srresnet_x4")] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"{WEIGHTS}, instead of --model.", readable=False)
    ] = None,
    scale: Annotated[
        int | None, typer.Option(help="Refuse a model of another scale.", show_default="that of the model")
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(metavar="NAME", help=f"{PRECISION}.")] = "auto",
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="What runs the network: auto, or one that `srgan-fast check` lists.")
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help=f"{MEMORY}.", show_default="no limit"),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Side of a tile in LR pixels; changes no pixel of the result.", show_default="as memory allows"
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="SUFFIX",
            help="Format of the images that are written, such as png.",
            show_default="that of each input",
            rich_help_panel=_FOLDERS,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Do again what is finished already.", rich_help_panel=_FOLDERS)
    ] = False,
    codec: video.Codec = None,
    crf: video.Crf = None,
    preset: video.Preset = None,
    ten_bit: video.TenBit = False,
    matrix: video.MatrixName = None,
    strict: video.Strict = False,
    resume: video.Resume = None,
    reuse: video.ReuseName = None,
    gpus: crew.Gpus = None,
    workers: crew.Workers = None,
    cluster: crew.Cluster = None,
) -> None:
    """Upscale an image, a video with its sound and all else in it, or a folder of both with its subfolders.

    In a folder, results that are there and newer than their input are skipped.
    A video that was stopped or killed goes on by the same command.
    With - for both, y4m video goes from stdin to stdout.
    """
    # PyTorch then asks for large pages: beside its convolutions a CPU spends most of a network's time on new memory.
    # Here and not where commands begin: what `bench` compares with runs as anyone would run it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if model is not None and weights is not None:
        raise UsageError(f"expected --model or --weights, got both ({model}, {weights}); leave one out")
    chosen = weights or model or "srresnet_x4"
    done: list[Job] = []
    try:
        # Everything that can be refused is refused before torch is loaded and the network is built.
        from srgan_fast.image import IMAGE_SUFFIXES

        if scale is not None and scale < 2:
            raise UsageError(f"expected a scale of 2 or more, got {scale}")
        suffix = _suffix(format)
        wish = crew.Wish(gpus, workers, cluster)
        choice = video.Choice(codec, crf, preset, ten_bit, matrix, strict, resume, reuse, wish)
        wish.check(device)

        def on(device: str) -> Callable[[], Upscaler]:
            # Workers stand in other folders.
            named = Path(os.path.abspath(chosen)) if isinstance(chosen, Path) else chosen
            return partial(_upscaler, named, scale, backend, device, precision, tile, memory)

        make, hands = cache(on(device)), partial(wish.crew, on, device)
        if pipe.wanted(source, target):
            if suffix is not None or overwrite:
                raise UsageError("--format and --overwrite are for images; leave them out")
            pipe.run(make, choice)
            return
        _refuse(source, target)
        if video.wanted(source, target):
            if suffix is not None:
                raise UsageError("--format is for images; a video's name says its format")
            if source.suffix.lower() in IMAGE_SUFFIXES:
                raise UsageError(f"expected a video for {target.name}, got the image {source.name}; write an image")
            video.run(source, target, make, choice, hands)
            return
        many = source.is_dir()
        if many:
            jobs = jobs_of(source, target, suffix, overwrite)
        else:
            jobs = Jobs([_job(source, target, suffix)], [], 0, "images", False, source)
        if choice.given() and not jobs.any_videos:
            raise UsageError(f"{choice.given()[0]} is for videos; leave it out")
        if wish != crew.Wish() and jobs.first_image is not None:
            others = f"{source} has images too ({jobs.first_image.name})"
            raise UsageError(f"{others}, and {choice.given()[-1]} is for videos; put them into a folder of their own")
        options = video.options_of(choice) if jobs.any_videos else None
        if many:
            make_folder(target)
            check_folder(target, target)
        todo = len(jobs.images) + len(jobs.videos)
        if not todo:
            print(
                f"nothing to do: all {jobs.finished} {jobs.kinds} are finished in {target}; --overwrite does them again"
            )
            return
        start = time.perf_counter()
        failures: list[SRGANFastError] = []
        how, frames = "", 0
        if jobs.images:
            upscaler = make()
            how = f" (x{upscaler.scale}, {upscaler.backend_name} {upscaler.precision} on {upscaler.device})"
            failures += _run(jobs.images, upscaler, done, many=many)
        if options is not None and jobs.videos:
            failed, frames = video.run_many(jobs.videos, make, options, hands, done)
            failures += failed
    except KeyboardInterrupt:
        kept = f"{len(done)} finished in {target}, the same command goes on" if done else "nothing was written"
        raise Interrupted(f"stopped; {kept}") from None
    counts = f"{len(done)} upscaled"
    if many:
        counts += f", {jobs.finished} finished before, {len(failures)} failed"
    seconds = time.perf_counter() - start
    if frames:
        how += f", {frames} frames of video, {frames / seconds:.2f} fps"
    print(f"{counts}{how} in {seconds:.2f} s -> {target if many else jobs.images[0][1]}")
    if failures:
        kinds = {type(failure) for failure in failures}
        kind = kinds.pop() if len(kinds) == 1 else InputError
        raise kind(f"{len(failures)} of {todo} {jobs.kinds} failed, the others are done; first: {failures[0]}")


def _upscaler(
    chosen: str | Path,
    scale: int | None,
    backend: str,
    device: str,
    precision: str,
    tile: int | None,
    memory: str | None,
) -> Upscaler:
    from srgan_fast.upscaler import Upscaler

    upscaler = Upscaler(chosen, backend=backend, device=device, precision=precision, tile=tile, memory=memory)
    if scale is not None and scale != upscaler.scale:
        raise UsageError(
            f"expected a model of scale {scale}, got {chosen} of scale {upscaler.scale}; "
            f"leave --scale out or name --weights of a x{scale} network"
        )
    return upscaler


def _suffix(format: str | None) -> str | None:
    from srgan_fast.image import IMAGE_SUFFIXES

    if format is None:
        return None
    suffix = "." + format.lower().removeprefix(".")
    if suffix not in IMAGE_SUFFIXES:
        raise UsageError(f"expected --format {', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))}, got {format}")
    return suffix


def _refuse(source: Path, target: Path) -> None:
    for path, kind in ((source, InputError), (target, OutputError)):
        try:
            path.exists()
        except OSError as error:
            raise kind(f"cannot use {path}: {error.strerror}; check its name and its permissions") from error
    if not os.path.lexists(source):
        raise InputError(f"expected an image, a folder or a video, got {source}, which does not exist; check the name")
    if same(source, target):
        raise UsageError(f"the input and the output are the same: {source}; name another output")


def _job(source: Path, target: Path, suffix: str | None) -> Job:
    from srgan_fast.image import IMAGE_SUFFIXES

    if target.is_dir():
        target = target / (source.name if suffix is None else source.stem + suffix)
    elif suffix not in (None, target.suffix.lower()):
        raise UsageError(f"expected --format and the output's suffix to agree, got {suffix} and {target.name}")
    if same(source, target):
        raise UsageError(f"the input and the output are the same: {source}; name another output")
    if target.is_dir():
        raise OutputError(f"expected an image file to write, got the folder {target}; name another output")
    if target.suffix.lower() not in IMAGE_SUFFIXES:
        raise UsageError(f"expected an output of {', '.join(sorted(IMAGE_SUFFIXES))}, got {target.name}")
    check_folder(target.parent, target)
    return source, target


def _run(jobs: list[Job], upscaler: Upscaler, done: list[Job], *, many: bool) -> list[SRGANFastError]:
    """Do the jobs, noting in `done` what is written; one bad picture of many does not stop the others."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    failures: list[SRGANFastError] = []
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=len(jobs))
        for source, target in jobs:
            progress.update(task, description=source.name)
            try:
                _one(source, target, upscaler)
                done.append((source, target))
            except (InputError, MemoryBudgetError) as error:
                if not many:
                    raise
                failures.append(error)
                progress.stop()
                print(f"failed: {error}", file=sys.stderr)
                progress.start()
            progress.advance(task)
    return failures


def _one(source: Path, target: Path, upscaler: Upscaler) -> None:
    from srgan_fast import image

    picture = image.read(source)
    image.check_target(target, picture, upscaler.scale)
    make_folder(target.parent)
    image.write(target, image.upscale_picture(picture, upscaler))
