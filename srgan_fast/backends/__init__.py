"""Where frames are turned into larger frames, and the choice of which backend does it.

A backend accepts or says why not, and how to change that. `auto` takes the first that accepts; a backend that was
asked for by name never falls back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from srgan_fast.backends import eager, fused, onnx, openvino, tensorrt
from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.errors import BackendUnavailable, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from srgan_fast.tiling import Footprint
    from srgan_fast.weights import Model

_log = logging.getLogger(__name__)


class Backend(Protocol):
    """A network made ready to run on one device in one precision."""

    name: str
    precision: str
    footprint: Footprint
    batches: bool  # whether several frames at once are faster than one after another

    @property
    def reusable_bytes(self) -> int:
        """Memory of the device that the backend holds and that the next frame will use again."""

    def run(self, frames: Tensor, out: Tensor, band: int) -> None:
        """Upscale frames [n, h, w, 3] into `out` [n, h*scale, w*scale, 3], same dtype, on the backend's device.

        `frames` are contiguous, `out` may have any strides.
        `band` is the number of LR rows that the network's tail takes at a time; it changes memory, never a pixel.
        """


@dataclass(frozen=True)
class BackendEntry:
    """How to ask for a backend on a device, and how to make it from a model, a device and a precision.

    `offer` is how `auto` makes one that is not for every model, precision or machine: it says why not.
    """

    probe: Callable[[str], Ok | Unavailable]
    create: Callable[[Model, str, str], Backend]
    offer: Callable[[Model, str, str], Backend | Unavailable] | None = None


# In the order in which `auto` tries them.
BACKENDS: dict[str, BackendEntry] = {
    "tensorrt": BackendEntry(tensorrt.probe, tensorrt.TensorRTBackend, tensorrt.offer),
    "fused": BackendEntry(fused.probe, fused.FusedBackend),
    "openvino": BackendEntry(openvino.probe, openvino.OpenVINOBackend, openvino.offer),
    "eager": BackendEntry(eager.probe, eager.EagerBackend),
    "onnx": BackendEntry(onnx.probe, onnx.ONNXBackend),
}


def select(name: str, model: Model, device: str, precision: str) -> Backend:
    """Make the backend called `name`, or for `auto` the first that accepts.

    Raises:  UsageError for an unknown name; BackendUnavailable with the cause and the cure
    """
    if name != "auto":
        if name not in BACKENDS:
            raise UsageError(f"expected a backend of auto, {', '.join(BACKENDS)}, got {name!r}; see srgan-fast check")
        answer = BACKENDS[name].probe(device)
        if isinstance(answer, Unavailable):
            raise BackendUnavailable(f"backend {name} is not available: {answer.reason}; {answer.fix}")
        return BACKENDS[name].create(model, device, precision)
    reasons: dict[str, str] = {}
    refused: list[str] = []
    for candidate, entry in BACKENDS.items():
        answer = entry.probe(device)
        if isinstance(answer, Unavailable):
            reasons[candidate] = answer.reason
            continue
        try:
            backend = (entry.offer or entry.create)(model, device, precision)
        except BackendUnavailable as error:
            refused.append(str(error))
            reasons[candidate] = str(error)
            continue
        if isinstance(backend, Unavailable):
            reasons[candidate] = backend.reason
            continue
        # They run on this machine, but not this network on this device, or not rightly: worth a word to the user.
        for text in refused:
            _log.warning("%s", text)
        _log.info("backend %s chosen%s", candidate, f"; {_told(reasons)}" if reasons else "")
        return backend
    raise BackendUnavailable(f"no backend is available: {_told(reasons)}")


def _told(reasons: Mapping[str, str]) -> str:
    """Why each of them was not taken; what they share is said once."""
    sharing: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        sharing.setdefault(reason, []).append(name)
    return "; ".join(f"not {', '.join(names)}: {reason}" for reason, names in sharing.items())
