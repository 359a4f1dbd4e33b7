"""Faithful, exact and fast SRGAN super-resolution of photos and video.

`Upscaler` turns frames into frames four times larger; `load` reads the weights of this project and of others.
Importing this package loads nothing heavy: each name is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgan_fast import errors
    from srgan_fast.upscaler import Upscaler
    from srgan_fast.weights import load

__all__ = ["Upscaler", "__version__", "errors", "load"]

try:
    __version__ = version("srgan-fast")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0.0.0"

_HOMES = {"Upscaler": "srgan_fast.upscaler", "load": "srgan_fast.weights"}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("srgan_fast.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'srgan_fast' has no attribute {name!r}")
