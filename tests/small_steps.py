"""Training steps that a busy machine makes in a moment, for tests of what times them."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from srgan_fast.bench import train
from srgan_fast.features import VGG19
from srgan_fast.model import Discriminator, GeneratorConfig


def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow networks on two crops, and few photographs to cut them from."""
    monkeypatch.setitem(train.SIZES, "small", (2, 32))
    monkeypatch.setattr(train, "Discriminator", functools.partial(Discriminator, width=8))
    monkeypatch.setattr(train, "VGG19", lambda *_: VGG19(2, 2))
    monkeypatch.setattr(train, "_SIDE", 64)
    monkeypatch.setattr(train, "_STEPS", 100)
    for stage in train.STAGES:
        small = dataclasses.replace(train.PRESETS[stage], generator=GeneratorConfig(blocks=1, width=8))
        monkeypatch.setitem(train.PRESETS, stage, small)
