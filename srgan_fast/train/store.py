"""Training images, decoded once: one flat run of bytes and a table, in memory or mapped from a file of packed images.

A pack is a safetensors file of `pixels`, `table` and for pairs `lows`, whose metadata holds the digest of its images.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors
import torch
from torch import Tensor

from srgan_fast.atomic import atomic
from srgan_fast.errors import InputError, OutputError, UsageError
from srgan_fast.image import IMAGE_SUFFIXES, read_rgb

SUFFIX = ".pack"

_FORMAT = "srgan-fast pack 1"
# The header is written last, when the sizes are known, into room that is kept for it; spaces fill it.
_HEADER_BYTES = 1024
_ALIGNMENT = 8  # of the table's integers
_PARTS = ("high", "low")

Row = tuple[int, int, int]


@dataclass(frozen=True)
class Skipped:
    """A file that training leaves out, and why."""

    path: Path
    reason: str


class ImageStore:
    """Decoded images as one flat tensor, planes [3, h, w] of each one after another; `lows` are their LR if given.

    Shapes:  pixels [bytes], table and lows [images, 3]: first byte, height, width
    Dtypes:  pixels uint8, table and lows int64
    """

    def __init__(
        self,
        pixels: Tensor,
        table: Tensor,
        lows: Tensor | None = None,
        *,
        skipped: Iterable[Skipped] = (),
        digest: str | None = None,
    ) -> None:
        self.pixels, self.table, self.lows, self.skipped = pixels, table, lows, list(skipped)
        self._digest = digest

    @classmethod
    def of(cls, images: Iterable[Tensor], lows: Iterable[Tensor] | None = None) -> ImageStore:
        """A store of uint8 images [3, h, w], and of the LR of each if given."""
        memory = _Memory()
        table = [memory.add(image) for image in images]
        low_table = None if lows is None else torch.tensor([memory.add(low) for low in lows])
        return cls(memory.pixels(), torch.tensor(table).view(-1, 3), low_table)

    def __len__(self) -> int:
        return len(self.table)

    def image(self, index: int) -> Tensor:
        """HR image [3, h, w], a view."""
        return self._view(self.table[index])

    def low(self, index: int) -> Tensor:
        """The LR of an image of a pair, a view.

        Raises:  UsageError for a store without pairs
        """
        if self.lows is None:
            raise UsageError("expected a store of pairs, got HR images alone; read it with read_pairs")
        return self._view(self.lows[index])

    def _view(self, row: Tensor) -> Tensor:
        start, height, width = row.tolist()
        return self.pixels[start : start + 3 * height * width].view(3, height, width)

    def digest(self) -> str:
        """What identifies the images: another set, or another order, draws other batches.

        Cost:    a pass over all pixels the first time; none for a whole pack, which has it written down
        """
        if self._digest is None:
            self._digest = self.measured_digest()
        return self._digest

    def measured_digest(self) -> str:
        """`digest` from the pixels themselves, whatever is written down."""
        total = hashlib.sha256()
        for row in (*self.table, *(() if self.lows is None else self.lows)):
            _update(total, self._view(row))
        return total.hexdigest()


class _Memory:
    """Images one after another in memory that grows in place: never are there two copies of them."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, dtype=np.uint8)

    def add(self, image: Tensor) -> Row:
        """Append an image; its row of the table."""
        start, size = len(self._bytes), image.numel()
        self._bytes.resize(start + size, refcheck=False)
        self._bytes[start:] = image.contiguous().view(-1).numpy()
        return start, image.shape[1], image.shape[2]

    def pixels(self) -> Tensor:
        return torch.from_numpy(self._bytes)


class Folder:
    """The images under a folder, decoded one by one; those that do not do are left in `skipped`.

    `option` is what the user gives `smallest` by, for the advice; None if it cannot be chosen.

    Raises:  UsageError without the folder; InputError at the end if no image was of at least `smallest` a side
    """

    scale = 0  # no pairs

    def __init__(self, folder: Path, smallest: int, option: str | None = "--crop") -> None:
        if not folder.is_dir():
            raise UsageError(f"expected a folder of images, got {folder}; name an existing folder")
        _expect_readable(folder)
        self.folder, self.smallest, self.option, self.skipped = folder, smallest, option, list[Skipped]()
        found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        self.paths = sorted(p for p in found if not _is_report(p))

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[Tensor, None]]:
        found = False
        for path in self.paths:
            try:
                image = read_rgb(path)
            except InputError as error:
                self.skipped.append(Skipped(path, str(error)))
                continue
            if min(image.shape[1:]) < self.smallest:
                self.skipped.append(Skipped(path, _too_small(image, self.smallest)))
                continue
            found = True
            yield image, None
        if not found:
            raise InputError(
                f"expected images of at least {self.smallest}x{self.smallest} under {self.folder}, got none"
                f" ({_counted(self.skipped)}); add larger images{_or_lower(self.option)}"
            )


def _is_report(path: Path) -> bool:
    """Whether a picture is the curve of a run: its folder may lie among the images."""
    return path.name == "report.png" and path.with_suffix(".json").is_file()


class Pairs:
    """HR images of `folder`/high with their LR of the same stem in `folder`/low, as `Folder` gives images.

    Raises:  UsageError without the two folders; InputError at the end if no pair is left
    """

    def __init__(self, folder: Path, scale: int, smallest: int, option: str | None = "--crop") -> None:
        for part in _PARTS:
            if not (folder / part).is_dir():
                raise UsageError(f"expected {folder} to hold the folders high and low, found no {part}; make it")
            _expect_readable(folder / part)
        self.folder, self.scale, self.smallest, self.option = folder, scale, smallest, option
        self.skipped: list[Skipped] = []
        self._found = {part: self._by_stem(folder / part) for part in _PARTS}
        self._stems = sorted(self._found["high"].keys() | self._found["low"].keys())

    def __len__(self) -> int:
        return len(self._stems)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        found = False
        for stem in self._stems:
            pair = self._pair(stem)
            if isinstance(pair, Skipped):
                self.skipped.append(pair)
            else:
                found = True
                yield pair
        if not found:
            raise InputError(
                f"expected pairs of at least {self.smallest}x{self.smallest} under {self.folder}, got none"
                f" ({_counted(self.skipped)}); give high and low the same file names and sizes {self.scale} to 1,"
                f" and larger images{_or_lower(self.option)}"
            )

    def _by_stem(self, folder: Path) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES):
            if path.stem in found:
                self.skipped.append(Skipped(found[path.stem], f"{path.name} beside it has the same name"))
            found[path.stem] = path
        return found

    def _pair(self, stem: str) -> tuple[Tensor, Tensor] | Skipped:
        high_path, low_path = (self._found[part].get(stem) for part in _PARTS)
        if high_path is None or low_path is None:
            alone, missing = (low_path, "high") if high_path is None else (high_path, "low")
            assert alone is not None
            return Skipped(alone, f"{missing} holds no image named {stem}")
        try:
            high, low = read_rgb(high_path), read_rgb(low_path)
        except InputError as error:
            return Skipped(high_path, str(error))
        if high.shape[1:] != (low.shape[1] * self.scale, low.shape[2] * self.scale):
            sizes = f"{high.shape[2]}x{high.shape[1]} and {low.shape[2]}x{low.shape[1]}"
            return Skipped(high_path, f"high and low are {sizes}, not {self.scale} to 1")
        if min(high.shape[1:]) < self.smallest:
            return Skipped(high_path, _too_small(high, self.smallest))
        return high, low


def _expect_readable(folder: Path) -> None:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"cannot read {folder}; check its permissions")


def _counted(skipped: list[Skipped]) -> str:
    """How many were left out, and why the first was: the cause of an empty folder is mostly that of each file."""
    return f"{len(skipped)} skipped" + "".join(f": {one.path.name}: {one.reason}" for one in skipped[:1])


def _too_small(image: Tensor, smallest: int) -> str:
    return f"{image.shape[2]}x{image.shape[1]} is smaller than a {smallest} crop"


def _or_lower(option: str | None) -> str:
    return "" if option is None else f", or lower {option}"


def read_images(folder: Path, smallest: int, option: str | None = "--crop") -> ImageStore:
    """Every image under a folder that is at least `smallest` pixels on each side.

    Raises:  UsageError without the folder; InputError if no image is left
    """
    source, memory = Folder(folder, smallest, option), _Memory()
    table = [memory.add(image) for image, _ in source]
    return ImageStore(memory.pixels(), torch.tensor(table), skipped=source.skipped)


def read_pairs(folder: Path, scale: int, smallest: int, option: str | None = "--crop") -> ImageStore:
    """HR images of `folder`/high and their LR of the same stem in `folder`/low.

    Raises:  UsageError without the two folders; InputError if no pair is left
    """
    source, memory, small = Pairs(folder, scale, smallest, option), _Memory(), _Memory()
    rows = [(memory.add(high), small.add(low)) for high, low in source]
    table, lows = (torch.tensor(part) for part in zip(*rows, strict=True))
    offset, _, _ = memory.add(small.pixels().view(1, 1, -1))
    lows[:, 0] += offset
    return ImageStore(memory.pixels(), table, lows, skipped=source.skipped)


def read_source(source: Path, smallest: int, scale: int | None = None, option: str | None = "--crop") -> ImageStore:
    """What a user names as data: a pack, a folder of images, or with a scale a folder of pairs.

    `option` is what the user gives `smallest` by, for the advice; None if it cannot be chosen.

    Raises:  UsageError, InputError as the three readers do
    """
    if source.suffix == SUFFIX or source.is_file():
        return open_pack(source, smallest, option)
    if scale is None:
        return read_images(source, smallest, option)
    return read_pairs(source, scale, smallest, option)


def holds_pairs(folder: Path) -> bool:
    """Whether a folder holds train/high and train/low."""
    return all(os.path.isdir(folder / "train" / part) for part in _PARTS)


def training_part(data: Path, *, pairs: bool) -> Path:
    """The part of a user's data to train on.

    Of a folder of pairs that is high and low under train, or the HR images alone: neither LR images nor those of val.
    """
    if pairs and data.is_dir():
        return data / "train"
    return data / "train" / "high" if holds_pairs(data) else data


def write_pack(path: Path, pictures: Iterable[tuple[Tensor, Tensor | None]], scale: int = 0) -> str:
    """Write images, or pairs of a scale, as a pack and return their digest; whole or not at all.

    Shapes:  each picture uint8 [3, h, w], with its LR beside it or None
    Cost:    memory of one picture; room on the disk for the LR images twice
    Raises:  OutputError where it cannot be written; what `pictures` raises
    """
    total = hashlib.sha256()
    rows: list[Row] = []
    lows: list[Row] = []
    try:
        with atomic(path) as file, tempfile.TemporaryFile(dir=path.resolve().parent) as aside:
            file.write(bytes(_HEADER_BYTES))
            for high, low in pictures:
                rows.append((file.tell() - _HEADER_BYTES, high.shape[1], high.shape[2]))
                _update(total, high)
                file.write(high.contiguous().numpy().data)
                if low is not None:
                    lows.append((aside.tell(), low.shape[1], low.shape[2]))
                    aside.write(low.contiguous().numpy().data)
            _append(file, aside, lows, total)
            digest = total.hexdigest()
            _finish(file, rows, lows, {"format": _FORMAT, "digest": digest, "scale": str(scale)})
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; make room there or name another file") from error
    return digest


def _append(file: BinaryIO, aside: BinaryIO, lows: list[Row], total: hashlib._Hash) -> None:
    """Put the LR images behind the HR ones and say in their rows where they are now."""
    offset = file.tell() - _HEADER_BYTES
    aside.seek(0)
    for index, (start, height, width) in enumerate(lows):
        image = torch.frombuffer(bytearray(aside.read(3 * height * width)), dtype=torch.uint8).view(3, height, width)
        _update(total, image)
        file.write(image.numpy().data)
        lows[index] = (offset + start, height, width)


def _finish(file: BinaryIO, rows: list[Row], lows: list[Row], metadata: dict[str, str]) -> None:
    """The tables, and the header that is known only now."""
    file.write(bytes(-file.tell() % _ALIGNMENT))
    ends = [file.tell() - _HEADER_BYTES]
    tables = {"table": np.array(rows, dtype="<i8"), **({"lows": np.array(lows, dtype="<i8")} if lows else {})}
    header: dict[str, object] = {"pixels": {"dtype": "U8", "shape": [ends[0]], "data_offsets": [0, ends[0]]}}
    for name, table in tables.items():
        file.write(table.tobytes())
        ends.append(ends[-1] + table.nbytes)
        header[name] = {"dtype": "I64", "shape": list(table.shape), "data_offsets": ends[-2:]}
    index = hashlib.sha256(b"".join(table.tobytes() for table in tables.values())).hexdigest()
    said = json.dumps({"__metadata__": metadata | {"index": index}, **header}).encode()
    room = _HEADER_BYTES - 8
    file.seek(0)
    file.write(room.to_bytes(8, "little") + said.ljust(room))


def open_pack(path: Path, smallest: int = 1, option: str | None = "--crop") -> ImageStore:
    """The images of a pack that are at least `smallest` pixels on each side, mapped and not read.

    Cost:    the header and the table; pixels are read where crops are cut
    Raises:  UsageError without the file; InputError for another file, or a damaged one, as far as its size and its
             table tell: `verify_pack` reads the pixels too
    """
    tensors, metadata = _mapped(path)
    pixels, table, lows = tensors["pixels"], tensors["table"], tensors.get("lows")
    kept = table[:, 1:].amin(1) >= smallest
    if kept.all():
        return ImageStore(pixels, table, lows, digest=metadata["digest"])
    if not kept.any():
        raise InputError(
            f"expected images of at least {smallest}x{smallest} in {path}, got none ({len(table)} skipped);"
            f" pack larger ones{_or_lower(option)}"
        )
    skipped = [
        Skipped(path, f"image {index}: {width}x{height} is smaller than a {smallest} crop")
        for index, (_, height, width) in enumerate(table.tolist())
        if not kept[index]
    ]
    # The pixels are not read for it: what is written down, and which of the images are taken.
    said = f"{metadata['digest']} {kept.nonzero().view(-1).tolist()}"
    digest = hashlib.sha256(said.encode()).hexdigest()
    return ImageStore(pixels, table[kept], None if lows is None else lows[kept], skipped=skipped, digest=digest)


def verify_pack(path: Path) -> ImageStore:
    """Open a pack after a pass over all of its pixels.

    Raises:  UsageError without the file; InputError for another file, or a damaged one
    """
    store = open_pack(path)
    if store.measured_digest() != store.digest():
        raise _unusable(path, "its pixels do not match its digest")
    return store


def _mapped(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise UsageError(f"expected a pack of training images, got {path}; name a file that srgan-fast pack wrote")
    try:
        path.open("rb").close()  # safetensors says of a file without permission that it does not exist
        with safetensors.safe_open(path, framework="pt") as stored:
            metadata = dict(stored.metadata() or {})
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    except Exception as error:  # the parser's own
        raise _unusable(path, (str(error).splitlines() or [type(error).__name__])[0][:100]) from error
    if metadata.get("format") != _FORMAT or not {"digest", "index"} <= metadata.keys():
        raise _unusable(path, f"its format is {metadata.get('format', 'not said')!r:.60}")
    tables = [tensors[name] for name in ("table", "lows") if name in tensors]
    if "pixels" not in tensors or not tables or not all(_fits(table, tensors["pixels"]) for table in tables):
        raise _unusable(path, "its table does not fit its pixels")
    if hashlib.sha256(b"".join(table.numpy().tobytes() for table in tables)).hexdigest() != metadata["index"]:
        raise _unusable(path, "its table is damaged")
    return tensors, metadata


def _fits(table: Tensor, pixels: Tensor) -> bool:
    if table.dtype != torch.int64 or table.dim() != 2 or table.shape[1] != 3 or not len(table):
        return False
    start, height, width = table.unbind(1)
    inside = (start >= 0) & (height > 0) & (width > 0) & (start + 3 * height * width <= pixels.numel())
    return bool(inside.all())


def _unusable(path: Path, reason: str) -> InputError:
    return InputError(
        f"expected a pack of training images, got a damaged or another file: {path} ({reason});"
        " make it again with srgan-fast pack"
    )


def _update(total: hashlib._Hash, image: Tensor) -> None:
    total.update(repr(tuple(image.shape)).encode())
    total.update(image.contiguous().numpy().data)
