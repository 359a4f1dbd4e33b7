"""srgan-fast export: a model -> an ONNX file that was checked and run before it was written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from srgan_fast.cli.options import EnginePrecision, LeakyRelu, ModelArgument
from srgan_fast.errors import UsageError
from srgan_fast.outputs import check_file, same, write


def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="ONNX file to write, an .onnx.", readable=False)],
    precision: EnginePrecision = "fp16",
    frames: Annotated[
        str, typer.Option(metavar="NAME", help="Frames in and out: uint8 (NHWC), or float (float32 NCHW in 0 to 1).")
    ] = "uint8",
    leaky_relu: LeakyRelu = False,
) -> None:
    """Write a model as one ONNX file for every engine; a file that does not equal the network is not written."""
    if out.suffix != ".onnx":
        raise UsageError(f"expected an output called *.onnx, got {out.name}; name it so")
    check_file("OUT", out)
    if same(Path(model), out):
        raise UsageError(f"the model and the output are the same: {out}; name another output")
    from srgan_fast.export import Options, onnx_bytes
    from srgan_fast.export.verify import SHAPES, verify
    from srgan_fast.weights import load

    chosen: Any = {"precision": precision, "frames": frames}
    options = Options(**chosen, leaky_relu=leaky_relu)
    loaded = load(model)
    content = onnx_bytes(loaded, options)
    agreement = verify(content, loaded, options)
    write(out, content)
    sizes = ", ".join("x".join(map(str, shape)) for shape in SHAPES)
    print(f"{loaded.info.name}: network in {options.precision}, {options.frames} frames, x{loaded.info.scale}")
    print("checked: onnx's checker, shapes and types inferred strictly, lint for engines")
    if agreement is None:
        print("not run: the package onnxruntime is not installed; pip install 'srgan-fast[onnx]' and export again")
    else:
        print(f"onnxruntime against the network in float64, frames of {sizes}: {agreement}")
    print(f"-> {out} ({len(content) / 1e6:.1f} MB, sha256 {hashlib.sha256(content).hexdigest()[:16]})")
