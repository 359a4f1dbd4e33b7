"""srgan-fast convert: a checkpoint of another project -> a weights file of this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from srgan_fast.errors import UsageError
from srgan_fast.outputs import check_file, same


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="Checkpoint: .pth, .pt, .safetensors, or ncnn's .bin with its .param.", readable=False
        ),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="Weights file to write, a .safetensors.", readable=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model in the file.", show_default="that of the file")
    ] = None,
) -> None:
    """Recognise the generator in a checkpoint and write it as a weights file; code in a checkpoint is never run."""
    if target.suffix != ".safetensors":
        raise UsageError(f"expected an output called *.safetensors, got {target.name}")
    check_file("OUT", target)
    if same(source, target):
        raise UsageError(f"the input and the output are the same: {source}; name another output")
    from srgan_fast import weights

    info = weights.convert(source, target, name)
    shape = ", ".join(f"{key} {value}" for key, value in info.config.items())
    print(f"{info.source}: {info.architecture} ({shape})")
    print(f"input {info.input_range}, output {info.output_range}")
    for assumption in info.assumptions:
        print(f"assumed: {assumption}")
    print(f"-> {target} (digest {info.digest[:16]})")
