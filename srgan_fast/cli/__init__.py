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
    epilog="Example: srgan-fast upscale in.jpg out.png\n\nMore: `srgan-fast COMMAND --help`, and docs/tutorial.md.",
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


def _add(panel: str, command: Callable[..., None], epilog: str) -> None:
    app.command(rich_help_panel=panel, epilog=epilog)(command)


# In the order in which a newcomer meets them.
_add(
    _USE,
    upscale.upscale,
    "Examples: srgan-fast upscale clip.mp4 larger.mp4 --crf 20\n\nsrgan-fast upscale photos/ larger/ --memory 2G\n\n"
    "More: docs/video.md, docs/scale.md (several GPUs or machines), docs/embedding.md (pipes).",
)
_add(_USE, check.check, "More: docs/compatibility.md and docs/deploy.md.")
_add(
    _MEASURE,
    evaluate.evaluate,
    "Example: srgan-fast evaluate Set5/ --method bicubic --method srresnet_x4 --report report.html\n\n"
    "More: docs/report.md.",
)
_add(
    _MEASURE,
    bench.bench,
    "Example: srgan-fast bench video --size 320x180\n\nMore: CONTRIBUTING.md, on records; docs/precision.md.",
)
_add(
    _TRAIN,
    train.train,
    "Example: srgan-fast train photos/ run/ --preset cpu-srresnet-mse --validation Set5/\n\nMore: docs/training.md.",
)
_add(_TRAIN, pack.pack, "Example: srgan-fast pack photos/ photos.pack\n\nMore: docs/training.md.")
_add(
    _DEPLOY, convert.convert, "Example: srgan-fast convert checkpoint.pth model.safetensors\n\nMore: docs/security.md."
)
_add(
    _DEPLOY,
    calibrate.calibrate,
    "Example: srgan-fast calibrate model.safetensors --images photos/ --out model_int8.safetensors\n\n"
    "More: docs/precision.md.",
)
_add(_DEPLOY, export.export, "Example: srgan-fast export srresnet_x4 model.onnx\n\nMore: docs/deploy.md.")
app.add_typer(data.app, name="data", rich_help_panel=_MEASURE, epilog="More: docs/tutorial.md.")
app.add_typer(mos.app, name="mos", rich_help_panel=_MEASURE, epilog="More: docs/mos.md.")
app.add_typer(trt.app, name="trt", rich_help_panel=_DEPLOY, epilog="More: docs/deploy.md.")


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
