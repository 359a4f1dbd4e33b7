"""What else runs these networks, timed in the same rows; each peer only where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

from torch import Tensor

from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.errors import BackendUnavailable, UsageError
from srgan_fast.weights import Model

# Never tuned: on a CPU they run beside everything else, and claims are ratios over them.
FIXED = ("torch_bf16_folded", "torch_fp32_folded")
NAMES = ("compile", "spandrel", *FIXED)

# uint8 frames [n, h, w, 3] to uint8 frames, scale times larger, on the same device.
Upscale = Callable[[Tensor], Tensor]


class Peer(Protocol):
    """The module of a peer."""

    def probe(self) -> Ok | Unavailable:
        """Whether what it needs is installed; imports nothing of it."""

    def precision(self, device: str) -> str:
        """The precision that it runs in on a device."""

    def make(self, model: Model, device: str) -> Upscale:
        """Make the network ready; what it compiles for a shape it compiles in its first call.

        Raises:  UsageError for a network that it does not know, BackendUnavailable for a device that it lacks
        """


def available(name: str) -> Peer:
    """The peer called `name`.

    Raises:  UsageError for an unknown name; BackendUnavailable with the cause and the cure
    """
    if name not in NAMES:
        raise UsageError(f"expected a peer of {', '.join(NAMES)}, got {name!r}")
    peer = cast(Peer, import_module(f"{__name__}.{name}"))
    answer = peer.probe()
    if isinstance(answer, Unavailable):
        raise BackendUnavailable(f"peer {name} is not available: {answer.reason}; {answer.fix}")
    return peer


def installed() -> list[str]:
    """The peers that can run here, apart from torch.compile, which takes minutes, and from what runs anyway."""
    found = []
    for name in NAMES:
        if name in ("compile", *FIXED):
            continue
        try:
            available(name)
        except BackendUnavailable:
            continue
        found.append(name)
    return found


def need(*packages: str) -> Ok | Unavailable:
    """Whether packages are installed, without importing them."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        return Unavailable(f"{', '.join(missing)} not installed", f"pip install {' '.join(missing)}")
    return Ok()
