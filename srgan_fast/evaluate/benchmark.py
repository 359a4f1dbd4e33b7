"""Score methods on a folder of HR images: degrade, upscale, compare."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from srgan_fast.errors import InputError, ShapeError, UsageError
from srgan_fast.evaluate.metrics import Score, protocols, score
from srgan_fast.image import IMAGE_SUFFIXES, read_rgb
from srgan_fast.resize import imresize_down, imresize_up, nearest_up
from srgan_fast.weights import bundled

METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {"bicubic": imresize_up, "nearest": nearest_up}
DEFAULT_MODEL = "srresnet_x4"
# What a report calls the images beside those of a method.
RESERVED = ("LR", "HR", *METHODS)
_IDENTICAL = "identical to the HR image: the PSNR is infinite"
_MEAN_IDENTICAL = "the PSNR of at least one image is infinite"


@dataclass(frozen=True)
class Choice:
    """One way to upscale, by exactly one of: a name out of `METHODS`, a bundled model, a weights file, or a folder of
    images that another program made. `name` is what it goes by; a folder must have one."""

    method: str | None = None
    model: str | None = None
    weights: Path | None = None
    folder: Path | None = None
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Choice:
        """bicubic, nearest, a bundled model, or NAME=PATH: a weights file, or a folder of images made by others.

        Raises:  UsageError
        """
        name, given, place = text.partition("=")
        if given and name.strip() and place:
            path = Path(place)
            return cls(folder=path, name=name) if path.is_dir() else cls(weights=path, name=name)
        if not given and name in METHODS:
            return cls(method=name)
        if not given and name in bundled():
            return cls(model=name)
        known = ", ".join([*METHODS, *bundled()])
        raise UsageError(f"expected {known}, or NAME=PATH of weights or of a folder of images, got {text}")


@dataclass(frozen=True)
class Comparison:
    """One image of a benchmark by one method: what went in, what came out, and its scores by protocol.

    Shapes:  lr [3, h, w]; sr and hr [3, h*scale, w*scale], uint8
    """

    name: str
    method: str
    lr: Tensor
    sr: Tensor
    hr: Tensor
    scores: dict[str, Score]


@dataclass(frozen=True)
class _Method:
    """A choice, ready: a function from LR to SR, or the SR files that another program made, by HR file."""

    label: str
    scale: int
    precision: str
    upscale: Callable[[Tensor], Tensor] | None = None
    network: dict[str, Any] | None = None
    files: dict[Path, Path] | None = None
    unused: int = 0


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
    """Score one method; see `evaluate_all`. Without a choice it is the default model."""
    choice = Choice(method, model, weights)
    if choice == Choice():
        choice = Choice(model=DEFAULT_MODEL)
    (result,) = evaluate_all(
        hr_folder,
        [choice],
        protocol=protocol,
        lr_folder=lr_folder,
        scale=scale,
        precision=precision,
        on_image=on_image,
    )
    return result


def evaluate_all(
    hr_folder: Path,
    choices: Sequence[Choice],
    *,
    protocol: Sequence[str] = ("y601",),
    lr_folder: Path | None = None,
    scale: int | None = None,
    precision: str = "fp32",
    on_image: Callable[[Comparison], None] | None = None,
) -> list[dict[str, Any]]:
    """Upscale the LR of every image in a folder by each method and score the results against the HR.

    HR is cropped to a multiple of the scale, grey goes through RGB. LR is made by `imresize_down`, or read from
    `lr_folder`, where it has the same stem or is called STEM_*LR*. Images made by others have the same stem or are
    called STEM_*NAME*, and the size of the cropped HR. Networks run on the reference backend in fp32 unless `precision`
    names another. All methods have one scale: that of the networks, or 4.
    The results, in the order of the choices, are ready for JSON: method, scale, precision, network (architecture,
    blocks, parameters, steps and digest, where there is one), other_images (how many in a folder made by others were
    not used), mean (by protocol) and images. An infinite PSNR is None beside a note that says so.

    Raises:  UsageError for options that do not fit, unpaired files; InputError for images that cannot be used
    """
    names = protocols(protocol)
    files = images(hr_folder)
    lr_files = None if lr_folder is None else pair(files, images(lr_folder))
    methods = _methods(choices, files, scale, precision)
    factor = methods[0].scale

    entries: list[list[dict[str, Any]]] = [[] for _ in methods]
    scores: list[dict[str, list[Score]]] = [{name: [] for name in names} for _ in methods]
    for path in files:
        lr_file = None if lr_files is None else lr_files[path]
        hr, lr = pixels(path, lr_file, factor)
        for method, rows, columns in zip(methods, entries, scores, strict=True):
            sr = _version(method, path, lr)
            try:
                found = {name: score(hr, sr, name, factor) for name in names}
            except ShapeError as error:
                raise ShapeError(f"{path}, {method.label}: {error}") from None
            for name, value in found.items():
                columns[name].append(value)
            rows.append(
                {
                    "name": path.name,
                    "lr": "imresize" if lr_file is None else lr_file.name,
                    "scores": {name: _as_json(value, _IDENTICAL) for name, value in found.items()},
                }
            )
            if on_image is not None:
                on_image(Comparison(path.name, method.label, lr, sr, hr, found))
    return [
        {
            "method": method.label,
            "scale": factor,
            "precision": method.precision,
            **({} if method.network is None else {"network": method.network}),
            **({} if method.files is None else {"other_images": method.unused}),
            "mean": {name: _as_json(_mean(values), _MEAN_IDENTICAL) for name, values in columns.items()},
            "images": rows,
        }
        for method, rows, columns in zip(methods, entries, scores, strict=True)
    ]


def images(folder: Path) -> list[Path]:
    """The image files of a folder, by name.

    Raises:  InputError if it is no folder or holds none
    """
    try:
        if not folder.is_dir():
            raise InputError(f"expected a folder of images, got {folder}; check the path")
        there = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        # macOS leaves a ._NAME of metadata beside each file on foreign disks.
        found = sorted(path for path in there if not path.name.startswith("._"))
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


def _methods(choices: Sequence[Choice], files: Sequence[Path], scale: int | None, precision: str) -> list[_Method]:
    """The choices, made ready, with one scale and a label of its own each."""
    if not choices:
        raise UsageError("expected at least one method, got none")
    for choice in choices:
        count = sum(way is not None for way in (choice.method, choice.model, choice.weights, choice.folder))
        if count != 1:
            raise UsageError(f"expected one way to upscale at a time, got {'several' if count else 'none'}; give one")
    _check_scale(scale)
    networks = [
        None if choice.model is None and choice.weights is None else _network(choice, scale, precision)
        for choice in choices
    ]
    found = {network.scale for network in networks if network is not None}
    if len(found) > 1:
        raise UsageError(f"expected networks of one scale, got {', '.join(map(str, sorted(found)))}; keep those of one")
    factor = found.pop() if found else scale or 4
    # Beside networks, the precision is theirs.
    rest = "fp32" if any(networks) else precision
    methods = []
    for choice, network in zip(choices, networks, strict=True):
        if network is None and choice.folder is not None:
            network = _made(choice.name or "", choice.folder, files, factor)
        methods.append(network or _plain(choice.method or "", factor, rest))
    return _told_apart(methods)


def _told_apart(methods: Sequence[_Method]) -> list[_Method]:
    """Networks of one name get the start of their digest; what is still the same was given twice."""
    names = Counter(method.label for method in methods)
    methods = [
        replace(method, label=f"{method.label} ({method.network['digest'][:8]})")
        if names[method.label] > 1 and method.network is not None
        else method
        for method in methods
    ]
    for method in methods:
        if method.label in RESERVED and (method.files is not None or method.network is not None):
            raise UsageError(f"expected a name of its own for a method, got {method.label}; call it something else")
    twice = [label for label, count in Counter(method.label for method in methods).items() if count > 1]
    if twice:
        raise UsageError(
            f"expected each method once, of its own name, got {twice[0]} twice; leave one out or give it as NAME=PATH"
        )
    return methods


def chosen_method(
    choice: Choice, scale: int | None, precision: str
) -> tuple[str, int, str, Callable[[Tensor], Tensor]]:
    """The label, scale, precision and function (uint8, [3, h, w] -> [3, h*scale, w*scale]) of a choice but a folder.

    Raises:  UsageError for options that do not fit; WeightsError for a file that holds none
    """
    _check_scale(scale)
    plain = choice.method is not None
    found = _plain(choice.method or "", scale or 4, precision) if plain else _network(choice, scale, precision)
    assert found.upscale is not None
    return found.label, found.scale, found.precision, found.upscale


def made_by_others(name: str, folder: Path, files: Sequence[Path]) -> tuple[dict[Path, Path], int]:
    """What a method made elsewhere of each HR file (of equal stem, or STEM_*NAME*), and how many images are not its."""
    found = images(folder)
    stems = {file.stem for file in files}
    fitting = [file for file in found if file.stem in stems or name in file.stem]
    return pair(files, fitting, mark=name), len(found) - len(fitting)


def _check_scale(scale: int | None) -> None:
    if scale is not None and scale < 2:
        raise UsageError(f"expected a scale of 2 or more, got {scale}")


def _plain(name: str, scale: int, precision: str) -> _Method:
    if name not in METHODS:
        raise UsageError(f"expected a method out of {', '.join(METHODS)}, got {name}; networks go by --model")
    if precision not in ("fp32", "auto"):
        raise UsageError(f"expected fp32, the only precision of {name}, got {precision}; leave --precision out")
    resize = METHODS[name]
    return _Method(name, scale, "fp32", lambda lr: resize(lr, scale))


def _made(name: str, folder: Path, files: Sequence[Path], scale: int) -> _Method:
    if not (name.isprintable() and name.strip()):
        raise UsageError(f"expected a name of its own for {folder}, got {name or 'none'}; call it something else")
    pairs, unused = made_by_others(name, folder, files)
    return _Method(name, scale, "8 bits", files=pairs, unused=unused)


def _network(choice: Choice, scale: int | None, precision: str) -> _Method:
    from srgan_fast.upscaler import Upscaler

    source = choice.weights or choice.model or ""
    # A score must not depend on what the processor is good at: the reference backend, and nothing chosen by itself.
    upscaler = Upscaler(source, backend="eager", precision=precision)
    if scale not in (None, upscaler.scale):
        raise UsageError(f"expected scale {upscaler.scale}, which {source} is made for, got {scale}; leave --scale out")

    def run(lr: Tensor) -> Tensor:
        return upscaler(lr.permute(1, 2, 0).contiguous(), layout="HWC").permute(2, 0, 1).contiguous()

    info = upscaler.model.info
    network = {
        "architecture": info.architecture,
        "blocks": info.config.get("blocks"),
        "parameters": sum(parameter.numel() for parameter in upscaler.model.network.parameters()),
        "steps": info.recipe.get("steps_done"),
        "digest": info.digest,
    }
    return _Method(choice.name or info.name, upscaler.scale, upscaler.precision, run, network)


def _version(method: _Method, path: Path, lr: Tensor) -> Tensor:
    """A method's SR of an image."""
    if method.files is None:
        assert method.upscale is not None
        return method.upscale(lr)
    sr = read_rgb(method.files[path])
    height, width = (side * method.scale for side in lr.shape[-2:])
    if sr.shape[-2:] != (height, width):
        raise InputError(
            f"expected {width}x{height} pixels in {method.files[path]} for {path} at scale {method.scale}, "
            f"got {sr.shape[-1]}x{sr.shape[-2]}; check the scale and the pairing"
        )
    return sr


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
