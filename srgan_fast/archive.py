"""PyTorch's files from anybody: read without running code in them, and without unpacking more than they are worth."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import torch

from srgan_fast.errors import WeightsError

# Far above any network of this kind with the state of its training.
MAX_FILE_BYTES = 2**32
# torch.save does not compress, so an honest archive unpacks to less than its own size.
_MAX_RATIO = 4

# What scripts save beside the weights, such as their options or a best score: read as nothing at all.
_IGNORED = (
    *("argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
)


class _Ignored:
    """Stands for an object in a checkpoint whose class is not looked at, let alone run."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def check_size(path: Path) -> None:
    """Refuse a file that is too large for weights before anything of it is read.

    Raises:  WeightsError; OSError if there is no such file
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise WeightsError(f"expected weights of at most 4 GiB, got {size} bytes: {path}; save the state_dict alone")


def unpickle(source: Path | io.BytesIO) -> object:
    """What torch.save wrote, by torch's own reader of plain data, which knows no other classes than tensors and lists.

    Raises:  WeightsError for a file that is too large, unpacks to much more than it is, or has a wrong checksum;
             whatever torch's reader meets in a damaged file
    """
    if isinstance(source, Path):
        check_size(source)
    if zipfile.is_zipfile(source):
        _check_members(source)
    if isinstance(source, io.BytesIO):
        source.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old pickle formats, which is not the user's concern
        with torch.serialization.safe_globals([(_Ignored, name) for name in _IGNORED]):
            return torch.load(source, map_location="cpu", weights_only=True)


def _check_members(source: Path | io.BytesIO) -> None:
    """torch.load looks at neither sizes nor checksums."""
    size = source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes
    name = source if isinstance(source, Path) else "a checkpoint"
    with zipfile.ZipFile(source) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > _MAX_RATIO * size:
            raise WeightsError(
                f"expected an archive as torch.save writes it, got {size} bytes that unpack to {unpacked}: {name};"
                " do not use it, or save it again where it was made"
            )
        if (member := archive.testzip()) is not None:
            raise WeightsError(f"{member!r:.60} in {name} does not match its checksum: damaged; fetch it again")
