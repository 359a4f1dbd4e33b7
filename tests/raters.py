"""Raters for the tests of `srgan-fast mos`: a small study, a running page, and clients that rate as a browser does."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from srgan_fast.evaluate.mos.order import Showing, showings
from srgan_fast.evaluate.mos.prepare import prepare
from srgan_fast.evaluate.mos.server import application, listen, serve
from srgan_fast.evaluate.mos.store import Circumstances, Origin, Store
from srgan_fast.evaluate.mos.study import Study, load

SEEN = Circumstances(elapsed_ms=900, width=1280, height=720, ratio=1.25, zoom=1.0, fits=True)
AS_JSON = {"Content-Type": "application/json"}

Judge = Callable[[Showing], int]


def photo(path: Path, height: int = 40, width: int = 48, seed: int = 0) -> None:
    """A picture with edges and grain, which methods show differently."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    pixels = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].astype(int)
    pixels += generator.integers(-20, 21, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def originals(folder: Path, count: int = 3, *, seed: int = 0, **size: int) -> Path:
    """A folder of HR images."""
    for number in range(count):
        photo(folder / f"img_{number:03}.png", seed=seed + number, **size)
    return folder


def small_study(
    folder: Path, *, images: int = 3, methods: tuple[str, ...] = ("bicubic", "nearest"), **more: Any
) -> Study:
    """A study of small pictures with two calibration images, in folder/study."""
    calibration = originals(folder / "other", 2, seed=100)
    prepare(originals(folder / "hr", images), folder / "study", methods, calibration=calibration, **more)
    return load(folder / "study")


def simulate(study: Study, store: Store, judge: Judge, origin: Origin = "simulated", *, stop_before: int = 0) -> str:
    """Rate everything, but for the last few, as one rater; the rater's name in the analysis."""
    rater = store.rater(store.join(origin))
    assert rater is not None
    order = showings(study, rater.key)
    for showing in order[: len(order) - stop_before]:
        score = judge(showing) if showing.stimulus.expected is None else showing.stimulus.expected
        store.rate(rater, showing, score, SEEN)
    return rater.key[:12]


@contextmanager
def running(study: Study, store: Store, **options: Any) -> Iterator[int]:
    """The page in a thread; its port."""
    stopped = threading.Event()
    with listen("127.0.0.1", 0) as listener:
        port = int(listener.getsockname()[1])
        app = application(study, store, **options)
        thread = threading.Thread(target=serve, args=(app, listener, stopped.is_set))
        thread.start()
        try:
            yield port
        finally:
            stopped.set()
            thread.join(30)
            assert not thread.is_alive()


class Client:
    """What a browser does: one connection, cookies, JSON."""

    def __init__(self, port: int, cookie: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.cookie = cookie
        self.headers: dict[str, str] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and content; the headers are kept."""
        sent = ({"Cookie": self.cookie} if self.cookie else {}) | (headers or {})
        self._connection.request(method, path, body, sent)
        answer = self._connection.getresponse()
        content = answer.read()
        self.headers = {key.lower(): value for key, value in answer.getheaders()}
        if "set-cookie" in self.headers:
            self.cookie = self.headers["set-cookie"].partition(";")[0]
        return answer.status, content

    def get(self, path: str) -> dict[str, Any]:
        """JSON of an answer that is good."""
        status, content = self.raw("GET", path)
        assert status == 200, content
        return json.loads(content)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The same of what is sent."""
        status, content = self.raw("POST", path, json.dumps(body).encode(), AS_JSON)
        assert status == 200, content
        return json.loads(content)

    def join(self) -> dict[str, Any]:
        """Begin, as what it is: a program."""
        return self.post("/api/join", automated=True)

    def rate(self, state: dict[str, Any], score: int) -> dict[str, Any]:
        """Look at the picture, then score it; what comes next."""
        status, content = self.raw("GET", state["picture"])
        assert status == 200
        assert content.startswith(b"\x89PNG")
        return self.post("/api/rating", **rating(state, score))


def rating(state: dict[str, Any], score: object) -> dict[str, Any]:
    """What the page sends."""
    address = state["picture"].rpartition("/")[2]
    return {"address": address, "score": score, **vars(SEEN)}


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.01)
