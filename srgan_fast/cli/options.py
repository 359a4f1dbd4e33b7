"""Options and arguments that several commands have: one wording for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Without a full stop: some commands add to them.
EITHER = "Bundled model, or a weights file: ours or a known community checkpoint"
BUNDLED = "Name of a bundled model"
WEIGHTS = "Weights file, ours or a known community checkpoint"
HR = "Folder of original images"
LR = "Folder of their LR images, of equal stem or called STEM_*LR*"
LR_UNASKED = "made from HR by MATLAB's imresize"
MEMORY = "Most memory of the process, such as 2G or 512M"
PRECISION = "What the network computes in: auto, fp32, bf16; on a GPU fp16, int8"

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=f"{EITHER}.")]
# What engines are made from: `export` and `trt build`.
EnginePrecision = Annotated[str, typer.Option(metavar="NAME", help="What the network computes in: fp16 or fp32.")]
LeakyRelu = Annotated[
    bool,
    typer.Option("--leaky-relu", help="Write a PReLU whose channels share one slope as LeakyRelu: the same function."),
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
]

# What is scored or rated: `evaluate` and `mos prepare`.
METHOD = "NAME|NAME=PATH"
METHODS = (
    "Method: bicubic, nearest, a bundled model, or NAME=PATH of weights or of a folder of pictures made by others;"
    " may be repeated."
)
HRFolder = Annotated[Path, typer.Argument(metavar="HR_FOLDER", help=f"{HR}.", readable=False)]
LRFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help=f"{LR}.",
        show_default=LR_UNASKED,
        readable=False,
    ),
]
Scale = Annotated[
    int | None, typer.Option(help="HR pixels for each LR pixel, a side.", show_default="the model's, or 4")
]
