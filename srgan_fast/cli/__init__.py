"""The command line: parse -> library call -> print. One module a command; nothing heavy is imported for --help."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from srgan_fast import __version__
from srgan_fast.cli import bench, calibrate, check, convert, data, evaluate, export, mos, pack, train, trt, upscale
from srgan_fast.errors import InputError, Interrupted, MemoryBudgetError, OutputError, SRGANFastError

app = typer.Typer(
    name="srgan-fast",
    help="Super-resolution of photos and video with SRGAN: upscale, evaluate, train, export, check.",
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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command()(upscale.upscale)
app.command()(evaluate.evaluate)
app.command()(train.train)
app.command()(pack.pack)
app.command()(convert.convert)
app.command()(calibrate.calibrate)
app.command()(export.export)
app.command()(check.check)
app.command()(bench.bench)
app.add_typer(data.app, name="data")
app.add_typer(mos.app, name="mos")
app.add_typer(trt.app, name="trt")


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
