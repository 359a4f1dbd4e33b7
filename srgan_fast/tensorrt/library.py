"""The library itself: whether it is here and fits, its one logger, and which GPU its engines are for.

On a machine without a driver TensorRT gives out objects whose use, and even whose deletion, ends the process. So the
GPU is looked for first, and nothing of the library is made to find out whether it is there.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import threading
from collections import deque
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from srgan_fast.errors import BackendUnavailable

if TYPE_CHECKING:
    import tensorrt as trt

OLDEST = (10, 12)  # from here to 11 one way of building serves: a strongly typed network
_PACKAGES = {"tensorrt-cu11": 11, "tensorrt-cu12": 12, "tensorrt-cu13": 13}
_KEPT_ERRORS = 8
# What TensorRT says where memory is short; the first reads as if the network were to blame.
_SHORT_OF_MEMORY = ("couldnotfindanyimplementation", "insufficientmemory", "insufficientworkspace", "outofmemory")

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


def why_not(device: str) -> tuple[str, str] | None:
    """Why TensorRT cannot run on a device, and what would change that; None if it can. Loads nothing of it."""
    if not _is_nvidia(torch.device(device)):
        asked = torch.device(device).type == "cuda"
        return (
            f"it needs an NVIDIA GPU and driver, and {'torch sees none' if asked else f'the device is {device}'}",
            "choose --device cuda on a machine that has one, and a torch that is built for CUDA, or another --backend",
        )
    if importlib.util.find_spec("tensorrt") is None:
        return "it is not installed", f"pip install '{_package()}', whose libraries come from NVIDIA's own index"
    module = sys.modules.get("tensorrt")
    return _misfit(module.__version__ if module else _installed_version())


def load() -> Any:
    """The module `tensorrt`, 10.12 or later and for the CUDA of torch.

    Raises:  BackendUnavailable with the cause and the cure
    """
    # Whoever asks for the library is about to make something of it, which may end the process where no GPU is.
    answer = why_not("cuda")
    if answer is None:
        try:
            import tensorrt
        except (ImportError, OSError) as error:
            why = " ".join(str(error).split())
            answer = f"it cannot be loaded ({why})", f"pip install --force-reinstall '{_package()}'"
        else:
            answer = _misfit(tensorrt.__version__)
            if answer is None:
                return tensorrt
    raise BackendUnavailable(f"backend tensorrt is not available: {answer[0]}; {answer[1]}")


def _is_nvidia(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.cuda is not None and torch.cuda.is_available()


def _package() -> str:
    cuda = torch.version.cuda
    return f"tensorrt-cu{cuda.split('.')[0]}>=10.12" if cuda else "tensorrt>=10.12"


def _installed_version() -> str | None:
    """What the package says of itself; None for one that came without pip, which is asked when it is loaded."""
    for name in (*_PACKAGES, "tensorrt"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def _misfit(version: str | None) -> tuple[str, str] | None:
    """What is wrong with the library of this version beside this torch, and the cure."""
    if version is not None and tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        return f"TensorRT {version} is too old, 10.12 is needed", f"pip install --upgrade '{_package()}'"
    built_for = [major for name, major in _PACKAGES.items() if _has(name)]
    ours = int((torch.version.cuda or "0").split(".")[0])
    if built_for and ours and ours not in built_for:
        return (
            f"TensorRT is built for CUDA {built_for[-1]}, torch for CUDA {ours}",
            f"pip uninstall tensorrt-cu{built_for[-1]}, then pip install '{_package()}'",
        )
    return None


def _has(package: str) -> bool:
    with suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(package))
    return False


def gpu_identity(device: torch.device | str) -> dict[str, Any]:
    """What an engine is for, beside its network: a GPU of the same name may have other memory or fewer processors.

    Units:  `memory` and `l2` in bytes
    """
    gpu = torch.cuda.get_device_properties(device)
    return {
        "name": gpu.name,
        "sm": f"{gpu.major}.{gpu.minor}",
        "processors": gpu.multi_processor_count,
        "memory": gpu.total_memory,
        "l2": gpu.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one: TensorRT has no other way of being told which."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def tensor_shape(frames: tuple[int, int, int], channels: int, dtype: trt.DataType) -> tuple[int, int, int, int]:
    """How frames of n, h, w lie in a tensor of an exported graph: NHWC as uint8, NCHW as floats."""
    import tensorrt as trt

    n, h, w = frames
    return (n, h, w, channels) if dtype == trt.DataType.UINT8 else (n, channels, h, w)


class _Told:
    """The last errors of TensorRT, numbered, so that who works knows which are new."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: deque[tuple[int, str]] = deque(maxlen=_KEPT_ERRORS)
        self.count = 0

    def add(self, text: str) -> None:
        with self._lock:
            self.count += 1
            self._last.append((self.count, " ".join(text.split())))

    def since(self, mark: int) -> list[str]:
        """What came after a mark, oldest first, each once."""
        with self._lock:
            return list(dict.fromkeys(text for number, text in self._last if number > mark))


_told = _Told()
_one_logger = threading.Lock()
_logger: trt.ILogger | None = None


def logger() -> trt.ILogger:
    """The process's one logger: TensorRT keeps the first that it is given, and warns of every other."""
    global _logger
    with _one_logger:
        if _logger is None:
            _logger = _make_logger()
        return _logger


def _make_logger() -> trt.ILogger:
    import tensorrt as trt

    severity = trt.ILogger.Severity
    # An error is told once, by whoever raises it; most warnings are advice that no user can take.
    levels = {severity.INTERNAL_ERROR: logging.INFO, severity.ERROR: logging.INFO, severity.WARNING: logging.INFO}

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # not super(): the part in C++ has to be made by name

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            # What is raised here ends up in C++, and comes out as noise on stderr.
            with suppress(Exception):
                if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                    _told.add(msg)
                _log.log(levels.get(severity, logging.DEBUG), "%s", msg)

    return Logger()


def mark() -> int:
    """A point in time for `said`."""
    return _told.count


def said(since: int) -> str:
    """Why TensorRT has failed, in its words since a mark, and in ours where those mislead."""
    text = "; ".join(_told.since(since)) or "TensorRT gave no reason"
    if any(clue in text.lower().replace(" ", "") for clue in _SHORT_OF_MEMORY):
        text += " (mostly that is too little GPU memory: take a smaller workspace or smaller largest frames)"
    return text


def checked(result: Result | None, what: str, since: int) -> Result:
    """What TensorRT has given; it says by False, or None where an object was asked for, that it has failed.

    Raises:  BackendUnavailable with what was tried and why it failed
    """
    if result is None or result is False:
        raise BackendUnavailable(f"{what}: {said(since)}")
    return result
