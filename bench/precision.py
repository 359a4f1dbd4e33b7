"""How near each precision comes to float32 and to the originals of a set: emulated, on the program that a GPU runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from srgan_fast.bench.figures import precision_figures
from srgan_fast.bench.record import record
from srgan_fast.evaluate.emulate import PRECISIONS, compare
from srgan_fast.kernels.parity import GATES
from srgan_fast.weights import load


def measure(
    model_name: str,
    hr_folder: Path,
    lr_folder: Path | None = None,
    precisions: Sequence[str] | None = None,
    on_image: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """One record a precision; None are all that the model can do, int8 only where it has scales.

    Raises:  what `evaluate.emulate.compare` raises
    """
    model = load(model_name)
    if precisions is None:
        precisions = [each for each in PRECISIONS if each != "int8" or model.calibration is not None]
    # What its quality took, where the file says so.
    effort = {key: model.info.recipe[key] for key in ("steps_done", "duration_s", "device") if key in model.info.recipe}
    training = {"training": effort} if "duration_s" in effort else {}
    found = []
    for precision, images in compare(model, hr_folder, lr_folder, precisions, on_image).items():
        passed = _passes(images, precision)
        raw = {"images": images, **training}
        found.append(
            record(
                "precision",
                model.info.name,
                weights=model.info.digest,
                impl="emulated",
                baseline="fp32",
                dtype=precision,
                device="cpu",
                set=hr_folder.resolve().name,
                lr="imresize" if lr_folder is None else lr_folder.resolve().name,
                raw=raw,
                derived=precision_figures(raw) if passed else {},
                quality={"gate": "pass" if passed else "fail"},
            )
        )
    return found


def _passes(images: Sequence[dict[str, Any]], precision: str) -> bool:
    """Whether every picture is finite, and near enough to fp32's for the gate of the precision, where it has one."""
    if not all(math.isfinite(value) for each in images for value in each.values() if isinstance(value, float)):
        return False
    gate = GATES.get(precision)
    return gate is None or all(
        each["max_error"] <= gate.max_error and each["mse"] <= 10 ** (-gate.psnr_db / 10) for each in images
    )
