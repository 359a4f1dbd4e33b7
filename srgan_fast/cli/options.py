"""Options and arguments that several commands have: one wording for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# A model by one word, where a command has a place for one.
EITHER = "Bundled model, or a weights file: ours or a known community checkpoint."
BUNDLED = "Name of a bundled model."
WEIGHTS = "Weights file, ours or a known community checkpoint"
LEAKY_RELU = "Write a PReLU whose channels share one slope as LeakyRelu: the same function."

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=EITHER)]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
]

# What is scored or rated: `evaluate` and `mos prepare`.
METHOD = "NAME|NAME=PATH"
METHODS = (
    "Method: bicubic, nearest, a bundled model, or NAME=PATH of weights or of a folder of pictures made by others;"
    " may be repeated."
)
HRFolder = Annotated[Path, typer.Argument(metavar="HR_FOLDER", help="Folder of original images.", readable=False)]
LRFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of their LR images, of equal stem or called STEM_*LR*.",
        show_default="made from HR by MATLAB's imresize",
        readable=False,
    ),
]
Scale = Annotated[
    int | None, typer.Option(help="HR pixels for each LR pixel, a side.", show_default="the model's, or 4")
]
