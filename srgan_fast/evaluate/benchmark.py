"""Score a method on a folder of HR images: degrade, upscale, compare."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from srgan_fast.errors import InputError, ShapeError, UsageError
from srgan_fast.evaluate.metrics import Score, protocols, score
from srgan_fast.image import IMAGE_SUFFIXES, read_rgb
from srgan_fast.resize import imresize_down, imresize_up, nearest_up

METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {"bicubic": imresize_up, "nearest": nearest_up}
DEFAULT_MODEL = "srresnet_x4"
_IDENTICAL = "identical to the HR image: the PSNR is infinite"
_MEAN_IDENTICAL = "the PSNR of at least one image is infinite"


@dataclass(frozen=True)
class Comparison:
    """One image of a benchmark: what went in, what came out, and its scores by protocol.

    Shapes:  lr [3, h, w]; sr and hr [3, h*scale, w*scale], uint8
    """

    name: str
    lr: Tensor
    sr: Tensor
    hr: Tensor
    scores: dict[str, Score]


def evaluate(
    hr_folder: Path,
    *,
    method: str | None = None,
    model: str | None = None,
    weights: Path | None = None,
    protocol: Sequence[str] = ("y601",),
    lr_folder: Path | None = None,
    scale: int | None = None,
    precision: str = "fp32",
    on_image: Callable[[Comparison], None] | None = None,
) -> dict[str, Any]:
    """Upscale the LR of every image in a folder and score it against the HR.

    HR is cropped to a multiple of the scale, grey goes through RGB. LR is made by `imresize_down`, or read from
    `lr_folder`, where it has the same stem or is called STEM_*LR*. The method is one of `METHODS`, a bundled model or
    a weights file. Networks run on the reference backend in fp32 unless `precision` names another.
    The result is ready for JSON: method, scale, precision, mean (by protocol) and images. An infinite PSNR is None
    beside a note that says so.

    Raises:  UsageError for options that do not fit, unpaired files; InputError for images that cannot be used
    """
    names = protocols(protocol)
    files = images(hr_folder)
    lr_files = None if lr_folder is None else pair(files, images(lr_folder))
    label, factor, computed, upscale = chosen_method(method, model, weights, scale, precision)

    entries: list[dict[str, Any]] = []
    scores: dict[str, list[Score]] = {name: [] for name in names}
    for path in files:
        lr_file = None if lr_files is None else lr_files[path]
        hr, lr = pixels(path, lr_file, factor)
        sr = upscale(lr)
        try:
            found = {name: score(hr, sr, name, factor) for name in names}
        except ShapeError as error:
            raise ShapeError(f"{path}: {error}") from None
        for name, value in found.items():
            scores[name].append(value)
        entries.append(
            {
                "name": path.name,
                "lr": "imresize" if lr_file is None else lr_file.name,
                "scores": {name: _as_json(value, _IDENTICAL) for name, value in found.items()},
            }
        )
        if on_image is not None:
            on_image(Comparison(path.name, lr, sr, hr, found))
    return {
        "method": label,
        "scale": factor,
        "precision": computed,
        "mean": {name: _as_json(_mean(values), _MEAN_IDENTICAL) for name, values in scores.items()},
        "images": entries,
    }


def images(folder: Path) -> list[Path]:
    """The image files of a folder, by name.

    Raises:  InputError if it is no folder or holds none
    """
    try:
        if not folder.is_dir():
            raise InputError(f"expected a folder of images, got {folder}; check the path")
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    except OSError as error:
        raise InputError(f"expected a readable folder, got {folder}: {error.strerror}; check its permissions") from None
    if not found:
        raise InputError(f"expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {folder}, got none; check the path")
    return found


def pair(hr_files: Sequence[Path], lr_files: Sequence[Path], mark: str = "LR") -> dict[Path, Path]:
    """Find the LR file of each HR file: the one with the same stem, else the one called STEM_*LR*.

    Another `mark` finds files of another kind in the same way, such as a method's results.

    Raises:  UsageError, with the names, if a file is left over or several fit
    """
    stems = {path.stem: path for path in hr_files}
    if len(stems) < len(hr_files):
        counts = Counter(path.stem for path in hr_files)
        twice = [path.name for path in hr_files if counts[path.stem] > 1]
        raise UsageError(f"expected HR files of different stems, got {', '.join(twice)}; rename one")
    claims: dict[Path, list[Path]] = {path: [] for path in hr_files}
    strays = []
    for file in lr_files:
        # Of img and img_1, the longer stem is meant by img_1_LR.
        fitting = [stem for stem in stems if file.stem.startswith(f"{stem}_") and mark in file.stem[len(stem) + 1 :]]
        stem = file.stem if file.stem in stems else max(fitting, key=len, default=None)
        if stem is None:
            strays.append(file.name)
        else:
            claims[stems[stem]].append(file)
    pairs: dict[Path, Path] = {}
    for path, candidates in claims.items():
        chosen = [file for file in candidates if file.stem == path.stem] or candidates
        if len(chosen) > 1:
            raise UsageError(
                f"expected one {mark} file for {path.name}, got {', '.join(file.name for file in chosen)}; keep one"
            )
        if chosen:
            pairs[path] = chosen[0]
            strays += [file.name for file in candidates if file != chosen[0]]
    alone = [path.name for path in hr_files if path not in pairs]
    if alone or strays:
        raise UsageError(
            f"expected one {mark} file for each HR file, of equal stem or called STEM_*{mark}*; got "
            f"HR without {mark}: {', '.join(alone) or 'none'}; {mark} without HR: {', '.join(strays) or 'none'}; "
            "rename or remove these"
        )
    return pairs


def chosen_method(
    method: str | None, model: str | None, weights: Path | None, scale: int | None, precision: str
) -> tuple[str, int, str, Callable[[Tensor], Tensor]]:
    """The label, scale, precision and function (uint8, [3, h, w] -> [3, h*scale, w*scale]) that the options choose.

    Raises:  UsageError for options that do not fit; WeightsError for a file that holds none
    """
    if sum(choice is not None for choice in (method, model, weights)) > 1:
        raise UsageError("expected one of --method, --model and --weights, got several; keep one")
    if scale is not None and scale < 2:
        raise UsageError(f"expected a scale of 2 or more, got {scale}")
    if method is not None:
        if method not in METHODS:
            raise UsageError(f"expected a method out of {', '.join(METHODS)}, got {method}; networks go by --model")
        if precision not in ("fp32", "auto"):
            raise UsageError(f"expected fp32, the only precision of {method}, got {precision}; leave --precision out")
        factor, resize = scale or 4, METHODS[method]
        return method, factor, "fp32", lambda lr: resize(lr, factor)

    from srgan_fast.upscaler import Upscaler

    source = weights if weights is not None else model or DEFAULT_MODEL
    # A score must not depend on what the processor is good at: the reference backend, and nothing chosen by itself.
    upscaler = Upscaler(source, backend="eager", precision=precision)
    if scale not in (None, upscaler.scale):
        raise UsageError(f"expected scale {upscaler.scale}, which {source} is made for, got {scale}; leave --scale out")

    def run(lr: Tensor) -> Tensor:
        return upscaler(lr.permute(1, 2, 0).contiguous(), layout="HWC").permute(2, 0, 1).contiguous()

    return upscaler.model.info.name, upscaler.scale, upscaler.precision, run


def pixels(hr_file: Path, lr_file: Path | None, scale: int) -> tuple[Tensor, Tensor]:
    """HR, cropped to a multiple of the scale, and its LR."""
    hr = read_rgb(hr_file)
    height, width = (side // scale * scale for side in hr.shape[-2:])
    if min(height, width) == 0:
        raise InputError(f"expected at least {scale} pixels on each side, got {tuple(hr.shape[-2:])} in {hr_file}")
    hr = hr[:, :height, :width].contiguous()
    if lr_file is None:
        return hr, imresize_down(hr, scale)
    lr = read_rgb(lr_file)
    if lr.shape[-2:] != (height // scale, width // scale):
        raise InputError(
            f"expected {width // scale}x{height // scale} pixels in {lr_file} for {hr_file} ({width}x{height}) "
            f"at scale {scale}, got {lr.shape[-1]}x{lr.shape[-2]}; check the scale and the pairing"
        )
    return hr, lr


def _mean(scores: Sequence[Score]) -> Score:
    psnrs, ssims = zip(*scores, strict=True)
    return Score(math.fsum(psnrs) / len(psnrs), math.fsum(ssims) / len(ssims))


def _as_json(value: Score, note: str) -> dict[str, Any]:
    """JSON has no infinity: null, and a note that says what it means."""
    if math.isinf(value.psnr_db):
        return {"psnr_db": None, "ssim": value.ssim, "note": note}
    return {"psnr_db": value.psnr_db, "ssim": value.ssim}
