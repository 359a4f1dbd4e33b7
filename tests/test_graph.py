"""CUDA graphs: what is left behind by a capture that fails, on a GPU that is acted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from srgan_fast import graph


class Device:
    """Stands for torch.cuda: which stream is current, and a capture that ends in an error where its work did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = "default"
        for name, stand_in in {"device": self.device, "stream": self.stream, "graph": self.graph}.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)

    @contextmanager
    def device(self, device: object) -> Iterator[None]:
        yield

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, one: object, stream: Any, capture_error_mode: str) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        except Exception as error:
            raise RuntimeError("operation failed due to a previous error during capture") from error
        self.current = before


class Stream:
    name = "own"

    def synchronize(self) -> None:
        pass


def test_a_capture_that_fails_says_why_and_goes_back_to_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    device, calls = Device(monkeypatch), []

    def work() -> None:
        calls.append(device.current)
        if len(calls) == 3:
            raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"):
        graph.capture(work, torch.device("cuda"), Stream())  # type: ignore[arg-type]
    assert calls == ["own"] * 3
    assert device.current == "default"
    assert not graph._CAPTURING.locked()


def test_an_error_of_the_end_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch)

    @contextmanager
    def ends_badly(*_: object, **__: object) -> Iterator[None]:
        yield
        raise RuntimeError("too large")

    monkeypatch.setattr(torch.cuda, "graph", ends_badly)
    with pytest.raises(RuntimeError, match="too large"):
        graph.capture(lambda: None, torch.device("cuda"), Stream())  # type: ignore[arg-type]
