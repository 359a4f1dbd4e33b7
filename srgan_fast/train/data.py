"""A store of images -> deterministic batches of (lr, hr) crops, made where the step runs.

A batch is a function of (seed, step, salt) alone: nothing has to be stored to resume, and two machines draw alike. The
host draws a few numbers a step. Where the pixels lie on the device it does no more; where they do not fit, a thread
cuts windows out of them some steps ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.errors import InputError, UsageError
from srgan_fast.kernels import training_crops
from srgan_fast.resize import gaussian_down, imresize_down
from srgan_fast.train.ahead import Ahead
from srgan_fast.train.config import CONTEXT, TrainConfig
from srgan_fast.train.store import ImageStore

# torch keeps 32 bits of a seed: multiples of an odd number this large meet no other step of a run.
_SALT = 0x9E3779B1
# Of the device's free memory, what pixels may take unless they are asked for.
_SHARE = 0.5


class Draws:
    """What a step draws for some rows of its batch: not one thing beside it is random.

    Apart from `Batches`, so that the thread which reads ahead does not keep that alive.
    """

    def __init__(self, store: ImageStore, config: TrainConfig, rows: slice) -> None:
        self.config, self._rows = config, rows
        scale = config.generator.scale
        table, reach = (store.table, config.crop) if store.lows is None else (store.lows, config.crop // scale)
        # How many places a crop can have in each image, as a float that a draw is multiplied by.
        self._places = (table[:, 1:] - reach + 1).float()

    def __call__(self, step: int, salt: int = 0) -> Tensor:
        """A row for each crop: image, y, x, and which of the eight ways it lies.

        Shapes:  [rows, 4]
        Dtypes:  int64
        Units:   y and x in HR pixels, in LR pixels for pairs
        """
        rng = torch.Generator().manual_seed((self.config.seed * 1_000_003 + step + salt * _SALT) % 2**63)
        count, batch = len(self._places), self.config.batch
        order = torch.cat([torch.randperm(count, generator=rng) for _ in range(-(-batch // count))])[:batch]
        # A number in [0, 1) times a count of places, cut to an integer.
        uniform = torch.rand(batch, 3, generator=rng)[self._rows]
        order = order[self._rows]
        drawn = torch.empty(len(order), 4, dtype=torch.int64)
        drawn[:, 0] = order
        drawn[:, 1:3] = uniform[:, :2] * self._places[order]
        drawn[:, 3] = uniform[:, 2] * 8
        return drawn


class Batches:
    """The batches of a run, or the rows of them that one of several ranks trains on.

    `resident` holds the pixels on the device; else windows are read ahead and copied. Left open, they are held where
    they take less than half of its free memory. Both give the same batches, bit for bit.

    Raises:  UsageError for a store that the config cannot use, or ranks that do not divide the batch
    """

    def __init__(
        self,
        store: ImageStore,
        config: TrainConfig,
        device: torch.device | str = "cpu",
        *,
        rank: int = 0,
        ranks: int = 1,
        resident: bool | None = None,
    ) -> None:
        _check(store, config)
        if config.batch % ranks or not 0 <= rank < ranks:
            raise UsageError(
                f"expected ranks that divide a batch of {config.batch}, got rank {rank} of {ranks};"
                " change --batch or the number of ranks"
            )
        self.store, self.config, self.device = store, config, torch.device(device)
        self.resident = _fits(store, self.device) if resident is None else resident
        share = config.batch // ranks
        self.draws = Draws(store, config, slice(rank * share, (rank + 1) * share))
        if self.resident:
            self._pixels, self._table = store.pixels.to(self.device), store.table.to(self.device)
            self._lows = None if store.lows is None else store.lows.to(self.device)
            self._ahead = None
        else:
            self._ahead = Ahead(store, config, self.device, share, self.draws)

    def __call__(self, step: int, salt: int = 0) -> tuple[Tensor, Tensor]:
        """The batch of a step; another `salt` draws another one for it, as after a rollback.

        Shapes:  lr [n, 3, crop/scale, crop/scale], hr [n, 3, crop, crop], n = batch / ranks; both channels last
        Dtypes:  float32
        Units:   lr in [0, 1], hr in [-1, 1]; both on the uint8 grid
        """
        if self._ahead is None:
            draws = self.draws(step, salt)
            if self.device.type == "cuda":
                # From pinned memory the copy waits for nothing; torch keeps it until the copy is done.
                draws = draws.pin_memory().to(self.device, non_blocking=True)
            return make(self._pixels, self._table, self._lows, draws, self.config)
        with self._ahead.windows(step, salt) as (pixels, table, lows, draws):
            return make(pixels, table, lows, draws, self.config)

    def close(self) -> None:
        """End the thread that reads ahead, if there is one."""
        if self._ahead is not None:
            self._ahead.close()


def make(
    pixels: Tensor, table: Tensor, lows: Tensor | None, draws: Tensor, config: TrainConfig
) -> tuple[Tensor, Tensor]:
    """A batch from images and draws on the device where they lie; see the op `training_crops`."""
    crop, scale = config.crop, config.generator.scale
    if config.degradation == "gaussian":
        margin = CONTEXT * scale
        wide = training_crops.windows(pixels, table, draws, crop, margin)
        lr = degrade(wide, config)[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT]
        lr, hr = training_crops.scaled(lr, 255.0), training_crops.scaled(wide, 127.5) - 1.0
        hr = hr[..., margin:-margin, margin:-margin]
        return lr.contiguous(memory_format=torch.channels_last), hr.contiguous(memory_format=torch.channels_last)
    size = crop // scale
    small = torch.empty(len(draws), size, size, 3, device=pixels.device)
    large = training_crops.run(pixels, table, draws, small, crop, scale, lows)
    return small.permute(0, 3, 1, 2), large.permute(0, 3, 1, 2)


def degrade(image: Tensor, config: TrainConfig) -> Tensor:
    """The LR of HR images, by the kernel that the run trains against.

    Raises:  UsageError for degradation pairs, whose LR is read and never made
    """
    if config.degradation == "pairs":
        raise UsageError("expected LR images beside the HR ones with degradation pairs, got HR alone; add a folder low")
    if config.degradation == "gaussian":
        return gaussian_down(image, config.generator.scale, config.blur_sigma)
    return imresize_down(image, config.generator.scale)


def _check(store: ImageStore, config: TrainConfig) -> None:
    if not len(store):
        raise InputError("expected at least one training image, got none; add images")
    if (store.lows is None) == (config.degradation == "pairs"):
        raise UsageError(
            "expected LR images with degradation pairs and only there,"
            f" got {'none' if store.lows is None else 'pairs'} with {config.degradation}; change --degradation"
        )
    scale = config.generator.scale
    if store.lows is not None and not torch.equal(store.table[:, 1:], store.lows[:, 1:] * scale):
        _, height, width = store.table[0].tolist()
        _, low_height, low_width = store.lows[0].tolist()
        raise UsageError(
            f"expected pairs of scale {scale}, got {width}x{height} over {low_width}x{low_height};"
            " train at the scale of the pairs"
        )
    smallest = int(store.table[:, 1:].min())
    if smallest < config.crop:
        raise UsageError(f"expected images of at least {config.crop} pixels a side, got {smallest}; lower --crop")


def _fits(store: ImageStore, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return store.pixels.numel() < _SHARE * free
