"""The command line: parse -> library call -> print. One module a command; nothing heavy is imported for --help."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from srgan_fast import __version__
from srgan_fast.cli import bench, calibrate, check, convert, data, evaluate, export, mos, pack, train, trt, upscale
from srgan_fast.errors import InputError, Interrupted, MemoryBudgetError, OutputError, SRGANFastError

_USE, _MEASURE, _TRAIN, _DEPLOY = "Upscale", "Measure", "Train", "Models and engines"

app = typer.Typer(
    name="srgan-fast",
    help="Upscale photos and videos with SRGAN; train, measure and deploy its networks.",
    epilog="Example: srgan-fast upscale in.jpg out.png\n\n"
    "More: `srgan-fast COMMAND --help`, docs/tutorial.md, and docs/commands.md for exit codes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"srgan-fast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _add(panel: str, command: Callable[..., None], *examples: str, docs: str) -> None:
    shown = [f"Example: srgan-fast {example}" for example in examples]
    app.command(rich_help_panel=panel, epilog="\n\n".join([*shown, f"More: {docs}."]))(command)


def _add_group(panel: str, group: typer.Typer, name: str, *, docs: str) -> None:
    app.add_typer(group, name=name, rich_help_panel=panel, epilog=f"More: {docs}.")


# In the order in which a newcomer meets them.
_add(
    _USE,
    upscale.upscale,
    "upscale clip.mp4 larger.mp4 --crf 20",
    "upscale photos/ larger/ --memory 2G",
    docs="docs/video.md, docs/scale.md (several GPUs or machines), docs/embedding.md (pipes)",
)
_add(_USE, check.check, docs="docs/compatibility.md, docs/deploy.md")
_add(
    _MEASURE,
    evaluate.evaluate,
    "evaluate Set5/ --method bicubic --method srresnet_x4 --report report.html",
    docs="docs/report.md",
)
_add(
    _MEASURE,
    bench.bench,
    "bench video --size 320x180",
    docs="docs/measurements.md, docs/video.md, docs/precision.md, CONTRIBUTING.md (records)",
)
_add(
    _TRAIN,
    train.train,
    "train photos/ run/ --preset cpu-srresnet-mse --validation Set5/",
    docs="docs/training.md",
)
_add(_TRAIN, pack.pack, "pack photos/ photos.pack", docs="docs/training.md")
_add(
    _DEPLOY,
    convert.convert,
    "convert checkpoint.pth model.safetensors",
    docs="docs/extending.md, docs/security.md",
)
_add(
    _DEPLOY,
    calibrate.calibrate,
    "calibrate model.safetensors --images photos/ --out model_int8.safetensors",
    docs="docs/precision.md",
)
_add(_DEPLOY, export.export, "export srresnet_x4 model.onnx", docs="docs/deploy.md")
_add_group(_MEASURE, data.app, "data", docs="docs/tutorial.md")
_add_group(_MEASURE, mos.app, "mos", docs="docs/mos.md")
_add_group(_DEPLOY, trt.app, "trt", docs="docs/deploy.md")


def main() -> None:
    """The entry point: one line and the documented exit code for every error that is the user's to mend."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
    except SystemExit as stop:
        if stop.code == Interrupted.exit_code:
            print("srgan-fast: stopped", file=sys.stderr)
        raise
    except SRGANFastError as error:
        print(f"srgan-fast: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MemoryError:
        print("srgan-fast: out of memory; give a smaller --memory or --tile", file=sys.stderr)
        sys.exit(MemoryBudgetError.exit_code)
    except OSError as error:
        if error.filename is not None:
            print(f"srgan-fast: cannot use {error.filename}: {error.strerror}; check its permissions", file=sys.stderr)
            sys.exit(InputError.exit_code)
        # What is left in the buffer would be tried again, and complained about, at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:  # whoever closes a pipe has read enough
            print(f"srgan-fast: cannot write the output: {error.strerror}; make room", file=sys.stderr)
        sys.exit(OutputError.exit_code)
