"""srgan-fast upscale: a file or a folder of images in, larger ones out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srgan_fast.errors import InputError, OutputError, SRGANFastError, UsageError

if TYPE_CHECKING:
    from srgan_fast.upscaler import Upscaler

_VIDEO = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".ts", ".m4v", ".y4m"}


def upscale(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image, or a folder of images.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The image or the folder to write.")],
    model: Annotated[str, typer.Option(help="A bundled model.")] = "srresnet_x4",
    weights: Annotated[
        Path | None, typer.Option(help="A weights file or a known checkpoint, instead of --model.")
    ] = None,
    scale: Annotated[int | None, typer.Option(help="Refuse a model of another scale.")] = None,
    backend: Annotated[str, typer.Option(help="auto, eager.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16; fp16 on a GPU.")] = "auto",
    tile: Annotated[int | None, typer.Option(help="Tile size in LR pixels; changes no pixel of the result.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory budget of the process, such as 2G.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Write results again that are there already.")] = False,
) -> None:
    """Upscale an image, or every image in a folder; finished results of a folder are skipped, so it can be resumed."""
    # Everything that can be refused is refused before torch is loaded and the network is built.
    jobs = _jobs(source, target, overwrite)
    from srgan_fast.upscaler import Upscaler

    upscaler = Upscaler(weights or model, backend=backend, device=device, precision=precision, tile=tile, memory=memory)
    if scale is not None and scale != upscaler.scale:
        raise UsageError(f"expected a model of scale {scale}, got {weights or model} of scale {upscaler.scale}")
    start = time.perf_counter()
    if source.is_dir():
        _folder(jobs, upscaler)
    else:
        ((one, result),) = jobs
        _one(one, result, upscaler)
    seconds = time.perf_counter() - start
    print(f"{upscaler.backend_name} {upscaler.precision} on {upscaler.device}: {seconds:.2f} s -> {target}")


def _jobs(source: Path, target: Path, overwrite: bool) -> list[tuple[Path, Path]]:
    """The (input, output) pairs that are still to do."""
    from srgan_fast.image import IMAGE_SUFFIXES

    if not source.exists():
        raise InputError(f"expected an image or a folder, got {source}, which does not exist")
    if source.suffix.lower() in _VIDEO:
        raise UsageError(f"{source.name} is a video; this version upscales images only")
    if source.resolve() == target.resolve():
        raise UsageError(f"the input and the output are the same: {source}; name another output")
    if not source.is_dir():
        if target.is_dir():
            target = target / source.name
            if source.resolve() == target.resolve():
                raise UsageError(f"the input and the output are the same: {source}; name another output")
        if target.suffix.lower() not in IMAGE_SUFFIXES:
            raise UsageError(f"expected an output of {', '.join(sorted(IMAGE_SUFFIXES))}, got {target.name}")
        if not target.parent.is_dir():
            raise OutputError(f"the folder of {target} does not exist; make it first")
        return [(source, target)]
    if target.exists() and not target.is_dir():
        raise UsageError(f"{source} is a folder, so the output must be one too, got the file {target}")
    inside = target.resolve()
    images = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and inside not in path.resolve().parents
    ]
    if not images:
        raise InputError(f"expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) under {source}, found none")
    pairs = [(path, target / path.relative_to(source)) for path in images]
    todo = [(one, result) for one, result in pairs if overwrite or not result.is_file()]
    print(f"{len(images)} images, {len(images) - len(todo)} finished before", file=sys.stderr)
    return todo


def _one(source: Path, target: Path, upscaler: Upscaler) -> None:
    from srgan_fast import image

    picture = image.read(source)
    image.check_target(target, picture)
    result = image.upscale_picture(picture, upscaler)
    image.write(target, result)


def _folder(jobs: list[tuple[Path, Path]], upscaler: Upscaler) -> None:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    failures: list[str] = []
    for source, target in track(jobs, "upscaling", console=console, disable=not console.is_terminal):
        try:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot make {target.parent}: {error.strerror}") from error
            _one(source, target, upscaler)
        except InputError as error:
            # One bad picture does not stop the others, but the run does not succeed either.
            failures.append(str(error))
            console.print(f"skipped: {error}", markup=False, soft_wrap=True)
    print(f"{len(jobs) - len(failures)} upscaled, {len(failures)} failed")
    if failures:
        raise SRGANFastError(f"{len(failures)} of {len(jobs)} images failed: {failures[0]}")
