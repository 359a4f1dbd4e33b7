"""Make the pictures of a study: each method's version of each image, cut alike, under names that say nothing."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srgan_fast.atomic import atomic
from srgan_fast.errors import InputError, OutputError, SRGANFastError, UsageError
from srgan_fast.evaluate.benchmark import Choice, chosen_method, images, made_by_others, pair, pixels
from srgan_fast.evaluate.mos.order import can_be_apart
from srgan_fast.evaluate.mos.study import REFERENCE, STUDY_FILE, Method, Phase, Stimulus, Study, check_name, load
from srgan_fast.evaluate.sets import digest
from srgan_fast.image import read_rgb
from srgan_fast.resize import imresize_down, nearest_up

_MOST_REPEATS = 5


@dataclass(frozen=True)
class _Source:
    """A method: its function from LR to SR, or the files that others made, by HR file."""

    method: Method
    upscale: Callable[[Tensor], Tensor] | None = None
    files: dict[Path, Path] | None = None


def prepare(
    hr_folder: Path,
    target: Path,
    methods: Sequence[str],
    *,
    calibration: Path | None = None,
    lr_folder: Path | None = None,
    scale: int | None = None,
    size: tuple[int, int] | None = None,
    repeats: int | None = None,
    seed: int | None = None,
    on_image: Callable[[str], None] | None = None,
) -> tuple[Study, list[str]]:
    """Make a study of the HR images of a folder, and say what of the input it did not use.

    A method is bicubic, nearest, a bundled model, or NAME=PATH: a weights file, or a folder of pictures made by others
    (of equal stem, or STEM_*NAME*). `calibration` is a folder of other HR images, whose nearest and HR versions are the
    examples of 1 and 5. `size` (width, height) cuts every version to its middle. `repeats` pictures are shown twice;
    5, or a fourth of all, where it is None. The folder is whole or it is not there.

    Raises:  UsageError for methods and options that do not fit; InputError for images that cannot be used; OutputError
             if the target exists or cannot be written
    """
    files = images(hr_folder)
    if len({path.stem for path in files}) < len(files):
        pair(files, [])  # says which
    if len(files) < 2:
        raise UsageError(
            f"expected at least 2 images, so that none comes twice in a row, got 1 in {hr_folder}; add some"
        )
    examples = [] if calibration is None else images(calibration)
    if len(examples) == 1:
        raise UsageError(f"expected at least 2 images to calibrate with, got 1 in {calibration}; add some")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"expected a folder that is new or empty, got {target}; choose another or remove it")

    sources, scale, remarks = _sources(methods, files, scale)
    lr_files = {} if lr_folder is None else pair(files, images(lr_folder))
    count = (len(sources) + 1) * len(files)
    repeats = min(_MOST_REPEATS, count // 4) if repeats is None else repeats
    if not 0 <= repeats <= count:
        raise UsageError(f"expected 0 to {count} repeats, of which there are as many pictures, got {repeats}")
    seed = secrets.randbits(63) if seed is None else seed

    # Beside the target, so that it takes its place in one step.
    part = target.absolute().parent / f".{secrets.token_hex(8)}.part"
    try:
        (part / "stimuli").mkdir(parents=True)
        drawer = _Drawer(part, size)
        seen = {}
        for path in files:
            hr, lr = pixels(path, lr_files.get(path), scale)
            seen[_sha256(hr)] = path
            drawer.add(path.name, REFERENCE, hr)
            for source in sources:
                drawer.add(path.name, source.method.name, _version(source, path, hr, lr))
            if on_image is not None:
                on_image(path.name)
        for path in examples:
            hr, _ = pixels(path, None, scale)
            if _sha256(hr) in seen:
                raise UsageError(
                    f"expected images outside the test to calibrate with, got {path}, which is {seen[_sha256(hr)]}; "
                    "remove it from one of the folders"
                )
            drawer.add(path.name, "nearest", nearest_up(imresize_down(hr, scale), scale), expected=1)
            drawer.add(path.name, REFERENCE, hr, expected=5)
        reference = Method(REFERENCE, "the original, hidden among the others")
        study = Study(
            folder=part,
            digest="",
            seed=seed,
            secret=secrets.token_hex(32),
            scale=scale,
            methods=(reference, *(source.method for source in sources)),
            images=tuple(path.name for path in files),
            stimuli=tuple(_repeated(drawer.stimuli, repeats, seed)),
        )
        with atomic(part / STUDY_FILE) as file:
            os.fchmod(file.fileno(), 0o600)  # it says which picture is whose
            file.write(study.as_json())
        os.rename(part, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}; make room or choose another folder") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(part)
    return load(target), remarks


def _sources(methods: Sequence[str], files: Sequence[Path], scale: int | None) -> tuple[list[_Source], int, list[str]]:
    """The methods as the user named them, the scale that they share, and which files of theirs are left over."""
    if not methods:
        raise UsageError("expected at least one method to compare with the originals, got none; give --method")
    choices: dict[str, Choice] = {}
    for text in methods:
        choice = Choice.parse(text)
        name = check_name(choice.name or choice.method or choice.model or "")
        if name in choices:
            raise UsageError(f"expected methods of different names, got {name} twice; call one otherwise: NAME=PATH")
        choices[name] = choice

    # Networks first: the others follow their scale. They are noted by the name that their file has for them.
    networks = {
        name: chosen_method(replace(choice, name=None), scale, "fp32")
        for name, choice in choices.items()
        if choice.model is not None or choice.weights is not None
    }
    scales = {network[1] for network in networks.values()} or {scale or 4}
    if len(scales) > 1:
        told = ", ".join(f"{name} x{network[1]}" for name, network in networks.items())
        raise UsageError(f"expected networks of one scale, got {told}; make a study of each scale")
    (shared,) = scales

    sources, remarks = [], []
    for name, choice in choices.items():
        if name in networks:
            label, _, precision, upscale = networks[name]
            sha256 = None if choice.weights is None else digest(choice.weights)
            sources.append(_Source(Method(name, f"{label}, {precision}", sha256), upscale))
        elif choice.folder is None:
            sources.append(_Source(Method(name, name), chosen_method(choice, shared, "fp32")[3]))
        else:
            found, unused = made_by_others(name, choice.folder, files)
            sources.append(_Source(Method(name, "files made elsewhere"), files=found))
            if unused:
                remarks.append(f"{unused} other images in {choice.folder} are left alone")
    return sources, shared, remarks


def _version(source: _Source, path: Path, hr: Tensor, lr: Tensor) -> Tensor:
    """A method's version of an image, uint8 [3, h, w]."""
    if source.files is not None:
        sr, origin = read_rgb(source.files[path]), str(source.files[path])
    else:
        assert source.upscale is not None
        try:
            sr, origin = source.upscale(lr), f"what {source.method.name} made"
        except SRGANFastError as error:
            error.args = (f"{path}: {error}",)
            raise
    if sr.shape != hr.shape:
        raise InputError(
            f"expected {hr.shape[-1]}x{hr.shape[-2]} pixels, the size of {path.name}, got "
            f"{sr.shape[-1]}x{sr.shape[-2]} in {origin}; all versions of an image must be of one size"
        )
    return sr


class _Drawer:
    """Writes pictures into a study and keeps the list of them."""

    def __init__(self, folder: Path, size: tuple[int, int] | None) -> None:
        self._folder, self._size = folder / "stimuli", size
        self.stimuli: list[Stimulus] = []

    def add(self, image: str, method: str, picture: Tensor, *, expected: int | None = None) -> None:
        """Cut a picture to its middle and write it, without metadata and as large as any other of its size."""
        height, width = picture.shape[-2:]
        if self._size is not None:
            width, height = min(width, self._size[0]), min(height, self._size[1])
        top, left = (picture.shape[-2] - height) // 2, (picture.shape[-1] - width) // 2
        cut = picture[:, top : top + height, left : left + width]
        buffer = io.BytesIO()
        # Not compressed: how well a picture compresses, and so the length of its file, would tell the method.
        Image.fromarray(np.ascontiguousarray(cut.permute(1, 2, 0).numpy())).save(buffer, "PNG", compress_level=0)
        content = buffer.getvalue()
        phase: Phase = "test" if expected is None else "calibration"
        stimulus = Stimulus(
            id=secrets.token_hex(16),
            phase=phase,
            image=image,
            method=method,
            width=width,
            height=height,
            sha256=hashlib.sha256(content).hexdigest(),
            expected=expected,
        )
        with atomic(self._folder / f"{stimulus.id}.png") as file:
            file.write(content)
        self.stimuli.append(stimulus)


def _repeated(stimuli: Sequence[Stimulus], repeats: int, seed: int) -> list[Stimulus]:
    """The stimuli in the order of their ids, some of the test marked to be shown twice.

    They are spread evenly over the images and, as far as that goes, over the methods: images with as many pictures each
    can always be kept apart.
    """
    test = [stimulus for stimulus in stimuli if stimulus.phase == "test"]

    def lot(text: str) -> str:
        return hashlib.sha256(f"{seed}\n{text}".encode()).hexdigest()

    names = sorted({stimulus.image for stimulus in test}, key=lot)
    methods = sorted({stimulus.method for stimulus in test}, key=lot)
    # Down a diagonal of images by methods, then down the one beside it.
    diagonals = [
        (image, methods[(row + turn) % len(methods)]) for turn in range(len(methods)) for row, image in enumerate(names)
    ]
    twice = set(diagonals[:repeats])
    marked = [
        Stimulus(**{**vars(stimulus), "repeats": 1})
        if stimulus.phase == "test" and (stimulus.image, stimulus.method) in twice
        else stimulus
        for stimulus in stimuli
    ]
    counts = {name: sum(1 + s.repeats for s in marked if s.phase == "test" and s.image == name) for name in names}
    assert can_be_apart(list(counts.values()))
    return sorted(marked, key=lambda stimulus: stimulus.id)


def _sha256(picture: Tensor) -> str:
    return hashlib.sha256(picture.to(torch.uint8).numpy().tobytes()).hexdigest()
