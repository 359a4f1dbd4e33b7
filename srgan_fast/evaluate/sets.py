"""The benchmark sets and the weights that this package may not ship: where they are, whose, and how to know them.

A file is `ok` only when its sha256 is known and agrees. Where no digest is known the file can be fetched and used,
but is never called verified.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from srgan_fast.atomic import atomic
from srgan_fast.errors import InputError, OutputError, UsageError
from srgan_fast.evaluate.benchmark import images
from srgan_fast.outputs import make_folder

State = Literal["ok", "missing", "differs", "unknown"]
_TIMEOUT_S = 30
_PNG = b"\x89PNG\r\n\x1a\n"
_DCSCN = (
    "https://raw.githubusercontent.com/jiny2001/dcscn-super-resolution/27d8f11cd8b5d58de0b91128b4b6c72375c69e16/data/"
)


@dataclass(frozen=True)
class Item:
    """A file to fetch: its sha256, or the first digits of it, or "" where it is not known."""

    name: str
    url: str
    sha256: str = ""

    @property
    def expected(self) -> str:
        """The digest in words."""
        if not self.sha256:
            return "sha256 unknown"
        return f"sha256 {self.sha256}" + ("" if len(self.sha256) == 64 else "...")


@dataclass(frozen=True)
class Collection:
    """Files that belong together, where they come from and on what terms."""

    name: str
    title: str
    source: str
    licence: str
    items: tuple[Item, ...]

    @property
    def digests(self) -> str:
        """How much of it can be verified, in words."""
        known = sum(bool(item.sha256) for item in self.items)
        if known < len(self.items):
            return f"sha256 known of {known} of {len(self.items)}"
        if len(self.items) == 1:
            return self.items[0].expected
        return "sha256 of each"


def _pngs(folder: str, count: int, digests: Sequence[str] = ()) -> tuple[Item, ...]:
    names = [f"img_{number:03}.png" for number in range(1, count + 1)]
    known = list(digests) or [""] * count
    return tuple(Item(name, f"{_DCSCN}{folder}/{name}", digest) for name, digest in zip(names, known, strict=True))


_SET5 = (
    "b7f0633258c4dc1a1ef57f26ef2e2db414b64c170cb7c618730cb2f2aae3c7ed",
    "6f9d47ea7f70bc8a98f33d483fc7ffe684e79c9c8398321006ab8093fce5e4ef",
    "a58f6334af41127d8de5ea64e36ad174623a689c1bd5c4100aee20738b93a944",
    "30bd282537e4660651d5f668252353a66723c301ccba541a699af053269e9eb3",
    "653e3aa5cbc70487e38e31260ba2d42588d575e267e23951ea66157adc3285e6",
)

COLLECTIONS = {
    collection.name: collection
    for collection in (
        Collection(
            "set5",
            "Set5, 5 images",
            "Bevilacqua et al. 2012; copy in jiny2001/dcscn-super-resolution",
            "none stated; academic benchmark",
            _pngs("set5", 5, _SET5),
        ),
        Collection(
            "set14",
            "Set14, 14 images cropped to even sizes",
            "Zeyde et al. 2010; copy in jiny2001/dcscn-super-resolution",
            "none stated; academic benchmark",
            _pngs("set14", 14),
        ),
        Collection(
            "bsd100",
            "BSD100, 100 images, 480x320",
            "Martin et al. 2001, the test images of BSDS300; copy in jiny2001/dcscn-super-resolution",
            "non-commercial research and education",
            _pngs("bsd100", 100),
        ),
        Collection(
            "vgg19",
            "VGG19 weights on ImageNet, 575 MB, for the vgg22 and vgg54 losses",
            "Simonyan and Zisserman 2015; torchvision's file",
            "torchvision BSD-3-Clause; ImageNet is for non-commercial research",
            (
                # The name of the file carries the first eight digits of its digest.
                Item("vgg19-dcbb9e9d.pth", "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", "dcbb9e9d"),
            ),
        ),
    )
}


def collection(name: str) -> Collection:
    """Look a collection up, in any case.

    Raises:  UsageError for an unknown name
    """
    if name.lower() not in COLLECTIONS:
        raise UsageError(f"expected one of {', '.join(COLLECTIONS)}, got {name}; see `srgan-fast data list`")
    return COLLECTIONS[name.lower()]


def default_folder(name: str) -> Path:
    """Where a collection is kept when no folder is named: in the user's cache.

    Raises:  InputError where nobody knows the user's home
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "srgan-fast" / name
    except RuntimeError as error:
        raise InputError(
            "expected a user with a home for the cache, got none; set XDG_CACHE_HOME, or name a folder by --to or --in"
        ) from error


def digest(path: Path) -> str:
    """The sha256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"expected a readable file, got {path}: {error.strerror}") from None


def state(item: Item, folder: Path) -> State:
    """Whether a file is there and is the one that is meant; `unknown` where no digest is known."""
    path = folder / item.name
    if not path.is_file():
        return "missing"
    if not item.sha256:
        return "unknown"
    return "ok" if digest(path).startswith(item.sha256) else "differs"


def recognise(folder: Path) -> tuple[Collection, str] | None:
    """The benchmark set that a folder holds, and by what it is known: by digests, else by its name and how many images.

    Raises:  InputError if it is no folder or holds no image
    """
    count = len(images(folder))
    name = re.sub(r"[^a-z0-9]", "", folder.resolve().name.lower())
    for candidate in COLLECTIONS.values():
        items = candidate.items
        if len(items) == count and all(item.sha256 and state(item, folder) == "ok" for item in items):
            return candidate, "by the digests of its files"
        if len(items) == count and name == candidate.name:
            return candidate, "by its name and the number of its images, not by their digests"
    return None


def fetch(wanted: Collection, folder: Path, on_item: Callable[[Item, State], None] | None = None) -> None:
    """Download what is missing, each file whole and with its digest checked before it takes its place.

    Raises:  InputError if an address cannot be reached or gives something else, with address and digest; OutputError
             if the folder cannot be written
    """
    make_folder(folder)
    for item in wanted.items:
        if state(item, folder) in ("missing", "differs"):
            _download(item, folder)
        if on_item is not None:
            on_item(item, state(item, folder))


def _download(item: Item, folder: Path) -> None:
    try:
        with atomic(folder / item.name) as file:
            hasher, first = hashlib.sha256(), b""
            for chunk in _chunks(item):
                first = first or chunk[: len(_PNG)]
                hasher.update(chunk)
                file.write(chunk)
            found = hasher.hexdigest()
            if not found.startswith(item.sha256):
                raise InputError(f"expected {item.expected} from {item.url}, got {found}; nothing was kept")
            if item.name.endswith(".png") and first != _PNG:
                raise InputError(f"expected a PNG file from {item.url}, got something else; nothing was kept")
    except OSError as error:
        raise OutputError(f"expected to write to {folder}, got: {error.strerror}; choose another with --to") from None


def _chunks(item: Item) -> Iterator[bytes]:
    """What an address gives, piece by piece; every failure of the network is an InputError."""
    try:
        with urllib.request.urlopen(item.url, timeout=_TIMEOUT_S) as response:
            length, received = response.headers.get("Content-Length"), 0
            while chunk := response.read(1 << 20):
                received += len(chunk)
                yield chunk
            reason = f"{received} of {length} bytes" if length and received != int(length) else ""
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"HTTP {error.code} {error.reason}"
    except (OSError, http.client.HTTPException) as error:
        reason = str(error.reason if isinstance(error, urllib.error.URLError) else error) or type(error).__name__
    if reason:
        raise InputError(
            f"expected to fetch {item.url} ({item.expected}), got: {reason}; "
            f"download it elsewhere, save it as {item.name} and run `srgan-fast data verify`"
        )
