"""srgan-fast bench: how fast this machine upscales and trains, beside how exact the result is."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from srgan_fast.cli.options import EITHER, HR, LR, LR_UNASKED, MEMORY, PRECISION
from srgan_fast.cli.sizes import parse_size
from srgan_fast.errors import OutputError, UsageError
from srgan_fast.outputs import check_file

_SUITES = ("kernel", "frame", "train", "memory")
# precision needs images, train_kernel a GPU, and reuse and video minutes: `all` does without them.
_PRECISION, _REUSE, _VIDEO = "precision", "reuse", "video"
_ALONE = ("train_kernel", _REUSE, _VIDEO, _PRECISION)
# Those that take one precision rather than every one.
_PRECISE = (_REUSE, _VIDEO)
_BESIDE, _RESULTS = "What else is timed", "Results"
_DEFAULT_SIZE = (128, 128)
_REUSE_SIZE = (1280, 720)
_VIDEO_SIZES = {"cpu": [(160, 90), (320, 180)], "cuda": [(480, 270), (960, 540)]}


@dataclass(frozen=True)
class _Asked:
    """What the options ask for; no sizes or batches means those of the suite on this device."""

    model: str
    sizes: list[tuple[int, int]]
    crops: list[str]
    batches: list[int]
    runs: int
    frames: int
    device: str
    precision: str
    memory: str | None
    compiled: bool
    compile_limit_s: float
    peers: bool
    hr: Path | None
    lr: Path | None


def bench(
    named: Annotated[
        str | None,
        typer.Argument(metavar="SUITE", help="What to measure, one of those above.", show_default="frame"),
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME|FILE", help=f"{EITHER}.")] = "srresnet_x4",
    suite: Annotated[
        str | None, typer.Option(metavar="SUITE", help="Another way to name the suite.", show_default="frame")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH,...",
            help="LR sizes in pixels, with commas between; all is every size from 64x64 to 1920x1080."
            " Suite train: small (batch 4, crop 32), paper (16, 96), or all.",
            show_default="128x128, and small; on a GPU all; reuse and video have their own",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Frames at once, with commas between; suites frame and kernel only.",
            show_default="1; of frame 1,4,8 with all sizes",
        ),
    ] = None,
    runs: Annotated[int, typer.Option(help="Timed runs of each candidate, in turns.")] = 5,
    frames: Annotated[int, typer.Option(help="Frames of the clip; suite video only.")] = 100,
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Where to compute: auto, cpu, cuda, cuda:1, ...; suite memory is always on the CPU."
        ),
    ] = "cpu",
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"{PRECISION}; suites memory, reuse and video only.",
        ),
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help=f"{MEMORY}; suite memory only.",
            show_default="no limit",
        ),
    ] = None,
    hr: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help=f"{HR}; suite precision only, which needs it.", readable=False),
    ] = None,
    lr: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help=f"{LR}; suite precision only.",
            show_default=LR_UNASKED,
            readable=False,
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Time torch.compile too, in a process of its own; suites frame and train only.",
            rich_help_panel=_BESIDE,
        ),
    ] = False,
    compile_limit_s: Annotated[
        float, typer.Option(help="Most seconds that torch.compile may take for a size.", rich_help_panel=_BESIDE)
    ] = 600.0,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Time others too: suite frame spandrel, where it is installed; suite video a PNG file for each frame,"
            " and OpenCV's loop.",
            rich_help_panel=_BESIDE,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Append the records, a line of JSON each.",
            rich_help_panel=_RESULTS,
            readable=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the speed-ups, as PNG.", rich_help_panel=_RESULTS, readable=False),
    ] = None,
) -> None:
    """Measure speed or memory beside quality; a result that fails its quality gate shows no figure.

    frame         speed of frames: every backend against plain PyTorch
    kernel        speed of each GPU op against its reference
    train         speed of training steps against plain PyTorch
    memory        peak of a process of its own against what was planned
    all           the four above
    train_kernel  speed of each training kernel against PyTorch's own functions
    reuse         a video of which only a part changes, with reuse and without
    video         a clip from file to file, its stages, and FFmpeg alone
    precision     what each precision loses on the images of --hr, emulated
    """
    if runs < 1:
        raise UsageError(f"expected --runs of at least 1, got {runs}; 5 is the default")
    if None not in (named, suite) and named != suite:
        raise UsageError(f"expected one suite, got {named} and --suite {suite}; name it once")
    suite = named or suite or "frame"
    if suite not in (*_SUITES, *_ALONE, "all"):
        raise UsageError(f"expected --suite {', '.join((*_SUITES, *_ALONE))} or all, got {suite!r}")
    if (suite == _PRECISION) != (hr is not None) or (lr is not None and hr is None):
        raise UsageError("--suite precision compares on images: expected --hr FOLDER with it, and with it alone")
    if suite not in ("memory", "all") and (memory is not None or (precision != "auto" and suite not in _PRECISE)):
        raise UsageError(
            "--memory belongs to --suite memory, --precision to memory, reuse and video; frame times every precision"
        )
    if suite not in ("frame", "all") and ((peers and suite != _VIDEO) or (compiled and suite != "train")):
        raise UsageError("--peers belongs to --suite frame and video, --compile to frame and train")
    if frames < 2:
        raise UsageError(f"expected --frames of at least 2, got {frames}; 100 is the default")
    if plot is not None and suite in ("memory", _REUSE, _VIDEO, _PRECISION):
        raise UsageError(f"--plot shows speeds; --suite {suite} measures none")
    # Refused before the minutes that the measurement takes, not after.
    if out is not None:
        _check_appended("--json", out)
    if plot is not None:
        check_file("--plot", plot)
    sizes, crops = ([], _crops(size)) if suite == "train" else (_sizes(size), [])
    batches = _batches(batch)
    if plot is not None:
        from srgan_fast.bench.plot import require

        require()
    wanted = (sizes, crops, batches)
    asked = _Asked(model, *wanted, runs, frames, device, precision, memory, compiled, compile_limit_s, peers, hr, lr)
    records: list[dict[str, Any]] = []
    for each in _SUITES if suite == "all" else (suite,):
        for some in _measured(each, asked):
            # Suites that share a process share its ceilings.
            some = [one for one in some if one not in records]
            _append(out, some)
            records += some
            _print(some)
    from srgan_fast.bench.table import ceiling_line

    print(ceiling_line(records), end="")
    if plot is not None:
        from srgan_fast.bench.plot import draw

        draw(records, plot)


def _measured(suite: str, asked: _Asked) -> Iterator[list[dict[str, Any]]]:
    """The records of a suite, what was timed together in one list, as soon as it is there."""
    if asked.hr is not None:
        from srgan_fast.bench.precision import measure

        yield measure(asked.model, asked.hr, asked.lr)
        return
    if suite == "memory":
        from srgan_fast.bench import memory

        for width, height in asked.sizes or [_DEFAULT_SIZE]:
            yield [memory.measure(asked.model, height, width, asked.precision, asked.memory)]
        return
    if suite == _REUSE:
        from srgan_fast.bench import reuse

        for width, height in asked.sizes or [_REUSE_SIZE]:
            yield list(reuse.measure(asked.model, height, width, asked.runs, asked.device, asked.precision))
        return
    if suite == _VIDEO:
        from srgan_fast.bench import video
        from srgan_fast.upscaler import resolved

        device = resolved(asked.device)
        for width, height in asked.sizes or _VIDEO_SIZES[device.partition(":")[0]]:
            clip = height, width, asked.frames
            yield [video.measure(asked.model, *clip, asked.runs, device, asked.precision, with_peers=asked.peers)]
        return
    from srgan_fast.bench import ceiling, frame, kernel, train, train_kernel
    from srgan_fast.bench.device import is_cuda
    from srgan_fast.upscaler import resolved

    device = resolved(asked.device)
    yield list(ceiling.measure(device))
    if suite == "train":
        for size in asked.crops or (train.SIZES if is_cuda(device) else ("small",)):
            for stage in train.STAGES:
                if asked.compiled:
                    yield train.in_child(asked.compile_limit_s, stage, size, asked.runs, device)
                else:
                    yield train.measure(stage, size, asked.runs, device)
        return
    if suite == "train_kernel":
        for what in train_kernel.PAIRS:
            yield train_kernel.measure(what, asked.runs, device)
        return
    everywhere = frame.SIZES if suite == "frame" else kernel.SIZES
    sizes = asked.sizes or (list(everywhere) if is_cuda(device) else [_DEFAULT_SIZE])
    batches = asked.batches or (list(frame.BATCHES) if suite == "frame" and len(sizes) == len(frame.SIZES) else [1])
    from srgan_fast.bench.peers import installed

    names = installed() if asked.peers else []
    for batch in batches:
        for width, height in sizes:
            if suite == "kernel":
                for name, op in kernel.all_ops().items():
                    yield kernel.measure({name: op}, height, width, asked.runs, device, batch=batch)
            elif asked.compiled:
                options = {"batch": batch, "with_peers": [*names, "compile"]}
                arguments = (asked.model, height, width, asked.runs, device)
                yield frame.in_child(asked.compile_limit_s, *arguments, **options)
            else:
                yield frame.measure(asked.model, height, width, asked.runs, device, batch=batch, with_peers=names)


def _sizes(size: str | None) -> list[tuple[int, int]]:
    if size is None:
        return []
    if size == "all":
        from srgan_fast.bench.frame import SIZES

        return list(SIZES)
    return [parse_size("--size", one) for one in size.split(",")]


def _crops(size: str | None) -> list[str]:
    from srgan_fast.bench.train import SIZES

    if size is None:
        return []
    found = list(SIZES) if size == "all" else [one.strip() for one in size.split(",")]
    if unknown := [one for one in found if one not in SIZES]:
        raise UsageError(f"expected --size {', '.join(SIZES)} or all for training steps, got {unknown[0]!r}")
    return found


def _batches(batch: str | None) -> list[int]:
    if batch is None:
        return []
    if not re.fullmatch(r"[1-9][0-9]{0,3}(,[1-9][0-9]{0,3})*", batch):
        raise UsageError(f"expected --batch like 1 or 1,4,8, got {batch!r}")
    return [int(one) for one in batch.split(",")]


def _print(records: list[dict[str, Any]]) -> None:
    from srgan_fast.bench.table import memory_table, precision_table, reuse_table, speed_tables, video_table

    tables = [table for table, _ in speed_tables(records)]
    for suite, make in (("memory", memory_table), (_REUSE, reuse_table), (_PRECISION, precision_table)):
        if some := [one for one in records if one["suite"] == suite]:
            tables.append(make(some))
    tables += [video_table(one) for one in records if one["suite"] == _VIDEO]
    for table in tables:
        print(table.text())


def _append(out: Path | None, records: Iterable[dict[str, Any]]) -> None:
    """Add the records to a file: all, or none."""
    if out is None:
        return
    size = out.stat().st_size if out.is_file() else None
    try:
        with out.open("a") as file:
            file.write("".join(json.dumps(one) + "\n" for one in records))
    except OSError as error:
        with contextlib.suppress(OSError):
            if size is not None:
                os.truncate(out, size)
            elif out.is_file():
                out.unlink()
        raise OutputError(f"cannot write {out}: {error.strerror}; name a file that can be written") from error


def _check_appended(option: str, out: Path) -> None:
    """Refuse a file that takes no more lines; one that is there may lie in a folder that takes no other."""
    if out.is_dir() or not out.parent.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise OutputError(f"expected {option} to name a file that can be written, got {out}; name another")
