"""What the backends have in common that run the exported graph: trunk and tail by an engine, the rest here.

Frames in uint8 come out of the uint8 graph, every other dtype out of the float graph. The tail runs in bands of rows
with a halo, as eager's does, so memory is bounded and a frame needs no tiles unless a budget asks for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from srgan_fast.backends import selfcheck
from srgan_fast.backends.eager import quantise
from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.errors import BackendUnavailable
from srgan_fast.export.graph import Frames
from srgan_fast.kernels.contract import LEVELS
from srgan_fast.kernels.parity import Agreement
from srgan_fast.tiling import Footprint
from srgan_fast.weights import Model

# Runs a part: what it reads, then what it writes, contiguous both.
Run = Callable[[tuple[Tensor, ...], Tensor], None]

_FLOAT_BYTES = 4


def installed(extra: str, *packages: str) -> Ok | Unavailable:
    """Whether packages are there, without importing them."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        return Unavailable(f"{' and '.join(missing)} not installed", f"pip install 'srgan-fast[{extra}]'")
    return Ok()


def imported(extra: str, package: str) -> Any:
    """A package that `installed` has found.

    Raises:  BackendUnavailable where it does not load all the same, as beside a numpy that it was not built for
    """
    try:
        return import_module(package)
    except (ImportError, OSError) as error:
        why = " ".join(str(error).split())
        raise BackendUnavailable(
            f"{package} is installed but cannot be loaded ({why}); pip install --force-reinstall 'srgan-fast[{extra}]'"
        ) from error


class ExportedBackend:
    """Frames through a trunk and a tail; a subclass makes those two, and says what they hold.

    `live` is what lives at once inside each part, bytes a LR pixel, `features` the dtype between the parts, and `want`
    eager's picture of the check's frames, where that is there already. What else there is to know is as in `Parts`.

    Raises:  BackendUnavailable where the picture is not eager's
    """

    name: str
    batches = False

    def __init__(
        self,
        model: Model,
        device: str,
        precision: str,
        trunk: Run,
        tails: Mapping[Frames, Run],
        *,
        channels: int,
        wants_frames: bool,
        radius: int | None,
        tail_radius: int,
        live: Mapping[str, float],
        features: torch.dtype = torch.float32,
        want: Tensor | None = None,
    ) -> None:
        self.device, self.info, self.precision = torch.device(device), model.info, precision
        self._trunk, self._tails, self._wants_frames = trunk, tails, wants_frames
        self._channels, self._dtype = channels, features
        # One request at a time: an engine's buffers are there once.
        self._lock = threading.Lock()
        self._largest = (0, 0)  # pixels of a frame, and of a band
        self._live = live
        kept = channels * features.itemsize + live["trunk"]
        band = channels * features.itemsize + 3 * _FLOAT_BYTES * model.info.scale**2
        self.footprint = Footprint(
            # The engine puts its result into an order of its own before it becomes features.
            trunk_bytes=kept + channels * features.itemsize,
            kept_bytes=kept,
            tail_bytes=live["tail"] + band,
            radius=radius,
            tail_radius=tail_radius,
        )
        self.check: tuple[Agreement, ...] = (selfcheck.hold(self, model, want=want),)

    @property
    def reusable_bytes(self) -> int:
        """See `Backend`: what the engine keeps of the largest frame and the largest band so far."""
        frame, band = self._largest
        return int(frame * self._live["trunk"] + band * self._live["tail"])

    def run(self, frames: Tensor, out: Tensor, band: int) -> None:
        """See `Backend.run`; a band of the whole height is the whole frame at once."""
        n, height, width, _ = frames.shape
        scale, halo = self.info.scale, self.footprint.tail_radius
        kind: Frames = "uint8" if frames.dtype == torch.uint8 else "float"
        with self._lock, torch.inference_mode():
            lr = _as_floats(frames)
            features = torch.empty(n, self._channels, height, width, dtype=self._dtype, device=self.device)
            self._trunk((lr,), features)
            rows = min(height, band + 2 * halo)
            self._largest = (max(self._largest[0], n * height * width), max(self._largest[1], n * rows * width))
            for top in range(0, height, band):
                bottom = min(height, top + band)
                above, below = max(0, top - halo), min(height, bottom + halo)
                inputs = [features[:, :, above:below].contiguous()]
                if self._wants_frames:
                    seen = frames[:, above:below] if kind == "uint8" else lr[:, :, above:below]
                    inputs.append(seen.contiguous())
                keep = slice((top - above) * scale, (bottom - above) * scale)
                target = out[:, top * scale : bottom * scale]
                self._tail(kind, tuple(inputs), keep, target)

    def _tail(self, kind: Frames, inputs: tuple[Tensor, ...], keep: slice, target: Tensor) -> None:
        """The tail on some rows, of whose HR rows those in `keep` become `target`."""
        n, _, rows, width = inputs[0].shape
        rows, width = rows * self.info.scale, width * self.info.scale
        if kind == "float":
            hr = torch.empty(n, 3, rows, width, device=self.device)
            self._tails[kind](inputs, hr)
            target.copy_(quantise(hr[:, :, keep], target.dtype).permute(0, 2, 3, 1))
        elif target.is_contiguous() and target.shape[1] == rows:
            self._tails[kind](inputs, target)
        else:
            pixels = torch.empty(n, rows, width, 3, dtype=torch.uint8, device=self.device)
            self._tails[kind](inputs, pixels)
            target.copy_(pixels[:, keep])


def _as_floats(frames: Tensor) -> Tensor:
    """Frames [n, h, w, 3] of any dtype as float32 [n, 3, h, w] in [0, 1]."""
    lr: Any = frames.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return lr.div_(LEVELS[frames.dtype]) if frames.dtype in LEVELS else lr
