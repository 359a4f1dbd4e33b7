"""TensorBoard: the curves of a run and a grid of samples, where the package is installed."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srgan_fast.resize import nearest_up

_log = logging.getLogger(__name__)


class Board:
    """Scalars and sample grids in `folder`; does nothing where `tensorboard` is not installed.

    `start` is the step that the run goes on from: what an interrupted run wrote after it is dropped.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._folder = folder
        # Any: the writer comes from a package that need not be there.
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            self._begin(start)

    def _begin(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        except OSError as error:
            self._stop(error)

    @property
    def open(self) -> bool:
        """Whether anything is written: samples need not be computed otherwise."""
        return self._writer is not None

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self._write("add_scalar", name, value, step)

    def samples(self, step: int, lr: Tensor, sr: Tensor, hr: Tensor) -> None:
        """Add a picture with a row per sample: LR by nearest neighbour, SR, HR."""
        if self.open:
            self._write("add_image", "samples", sample_grid(lr, sr, hr), step)

    def go_back(self, step: int) -> None:
        """Drop what was written of later steps: the run went back to this one."""
        self.close()
        if self.open:
            self._begin(step)

    def close(self) -> None:
        """Write out what is pending."""
        self._write("close")

    def _write(self, method: str, *arguments: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*arguments)
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        # Curves are a convenience: train.jsonl has the same numbers, and the run is worth more than its picture.
        _log.warning("TensorBoard stops here: cannot write its files: %s", error.strerror)
        self._writer = None


def sample_grid(lr: Tensor, sr: Tensor, hr: Tensor) -> Tensor:
    """One picture of a batch: a row per sample, and in it LR by nearest neighbour, SR, HR.

    Shapes:  lr [n, 3, h, w], sr and hr [n, 3, h*scale, w*scale] -> [3, n*h*scale, 3*w*scale]
    Units:   lr in [0, 1], sr and hr in [-1, 1]; the picture in [0, 1]
    """
    wide = nearest_up(lr, hr.shape[-1] // lr.shape[-1])
    columns = torch.cat([wide, (sr + 1) / 2, (hr + 1) / 2], dim=3).clamp(0, 1)
    return torch.cat(list(columns), dim=1)
