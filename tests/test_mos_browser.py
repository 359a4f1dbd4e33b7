"""A real browser rates a whole set, by mouse, touch and keyboard, on screens of several kinds; needs Chromium.

Where SRGAN_FAST_SCREENSHOTS names a folder, the pictures that the documents show are written into it.
"""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from conftest import ROOT, script
from PIL import Image
from raters import wait_for

from srgan_fast.evaluate.mos import LABELS
from srgan_fast.evaluate.mos.analysis import analyse
from srgan_fast.evaluate.mos.order import Showing, showings
from srgan_fast.evaluate.mos.prepare import prepare
from srgan_fast.evaluate.mos.store import Store
from srgan_fast.evaluate.mos.study import Study, load

pytestmark = pytest.mark.slow

METHODS = ("HR", "bicubic", "nearest", "srresnet_x4_small")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Quarters of the bundled scene: two to rate, two to calibrate with."""
    folder = tmp_path_factory.mktemp("mos")
    scene = script(ROOT / "examples" / "draw_scene.py").scene()
    for index, (place, corner) in enumerate(
        [("hr", (0, 272)), ("hr", (480, 272)), ("other", (480, 0)), ("other", (0, 0))]
    ):
        (folder / place).mkdir(exist_ok=True)
        scene.crop((*corner, corner[0] + 480, corner[1] + 272)).save(folder / place / f"quarter_{index}.png")
    prepare(folder / "hr", folder / "study", METHODS[1:], calibration=folder / "other", repeats=2)
    return load(folder / "study")


class Server:
    """`srgan-fast mos serve` as a user starts it."""

    def __init__(self, study: Study) -> None:
        self._folder, self._port = study.folder, 0
        self.start()

    def start(self) -> None:
        """Start it, again at the same address."""
        command = [sys.executable, "-m", "srgan_fast", "mos", "serve", str(self._folder), "--port", str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self.address = self._process.stdout.readline().removeprefix("rate at ").rstrip()
        self._port = int(self.address.rstrip("/").rpartition(":")[2])

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it."""
        self._process.send_signal(number)
        self._process.communicate(timeout=30)


@pytest.fixture
def server(study: Study) -> Iterator[Server]:
    found = Server(study)
    yield found
    found.stop()


class Page:
    """The page in a browser of its own."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def screen(self, width: int, height: int, ratio: float = 1.0, *, phone: bool = False) -> None:
        """Another screen: CSS pixels, and device pixels to each of them."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        for _ in range(2):  # a headless browser draws nothing by itself, and tells a page of its screen when it draws
            self.screenshot()

    def open(self) -> None:
        self.driver.get(self.address)
        wait_for(lambda: self.shown("start") or self.ready is not None)

    @property
    def ready(self) -> str | None:
        return self.driver.execute_script("return document.body.dataset.ready || null")

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def shown(self, name: str) -> bool:
        return bool(self.script("const e = document.getElementById(arguments[0]); return !!e.offsetParent", name))

    def text(self, name: str) -> str:
        return str(self.script("return document.getElementById(arguments[0]).textContent", name))

    def click(self, name: str) -> None:
        self.driver.find_element("id", name).click()

    def press(self, key: str) -> None:
        self.driver.find_element("tag name", "body").send_keys(key)

    def score(self, score: int) -> None:
        """Click or touch it."""
        self.driver.find_elements("css selector", "#scale button")[score - 1].click()

    def at(self, position: int | str) -> None:
        wait_for(lambda: self.ready == str(position))

    def screenshot(self) -> Image.Image:
        """In device pixels."""
        answer = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        return Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")


@pytest.fixture
def page(server: Server, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    drivers: list[Any] = []

    def make(*more: str) -> Page:
        drivers.append(chromium(tmp_path / f"profile{len(drivers)}", *more))
        return Page(drivers[-1], server.address)

    yield make
    for driver in drivers:
        driver.quit()


def order_of_the_last(study: Study) -> list[Showing]:
    """The order of the rater who joined last."""
    connection = sqlite3.connect(study.ratings_file)
    (key,) = connection.execute("SELECT key FROM raters ORDER BY id DESC LIMIT 1").fetchone()
    connection.close()
    return showings(study, key)


def keep(page: Page, name: str) -> None:
    folder = os.environ.get("SRGAN_FAST_SCREENSHOTS")
    if folder:
        page.screenshot().quantize(256).save(Path(folder) / name, optimize=True)


SCORES = [
    {"HR": 5, "bicubic": 2, "nearest": 1, "srresnet_x4_small": 4},
    {"HR": 4, "bicubic": 2, "nearest": 1, "srresnet_x4_small": 3},
]


def test_two_raters_rate_a_whole_set(study: Study, page: Callable[..., Page]) -> None:
    """One by mouse, reloading in the middle; one by touch and keyboard on a phone, who mends a slip."""
    hidden = [*METHODS[1:], "quarter_", *(stimulus.id for stimulus in study.stimuli)]
    for index, scores in enumerate(SCORES):
        browser = page()
        if index == 0:
            browser.screen(1280, 800)
        else:
            browser.screen(390, 844, 3, phone=True)
        browser.open()
        assert "14 pictures" in browser.text("count")
        assert browser.shown("examples")
        keep(browser, ("mos_intro_wide.png", "mos_intro_phone.png")[index])
        browser.click("start")
        browser.at(0)
        order = order_of_the_last(study)
        assert len(order) == 14
        for position, showing in enumerate(order):
            browser.at(position)
            example = showing.stimulus.expected
            expected = f"Example {position + 1} of 4" if example else f"{position - 3} of 10"
            assert browser.text("where") == expected
            assert not [word for word in hidden if word in browser.driver.page_source]
            if position == 5:
                keep(browser, ("mos_rating_wide.png", "mos_rating_phone.png")[index])
            if position == 8 and index == 0:
                browser.driver.refresh()
                browser.at(position)
            if position == 8 and index == 1:
                browser.press("\ue003")  # Backspace
                browser.at(position - 1)
                right = scores[order[7].stimulus.method]
                assert (
                    browser.script("return document.querySelector('.given').textContent") == f"{right}{LABELS[right]}"
                )
                browser.press("5" if right == 1 else "1")
                browser.at(position)
                browser.click("back")
                browser.at(position - 1)
                browser.press(str(right))
                browser.at(position)
            if example is not None and position == 0:
                browser.press(str(6 - example))  # not what it is an example of
                wait_for(
                    lambda browser=browser, example=example: (
                        browser.text("notice") == f"This is an example of {example}."
                    )
                )
            score = example or scores[showing.stimulus.method]
            if (position + index) % 2:
                browser.press(str(score))
            else:
                browser.score(score)
        browser.at("end")
        assert browser.shown("end")
        addresses = browser.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert len(addresses) > 10
        assert not [word for word in hidden if word in " ".join(addresses)]
        errors = [entry for entry in browser.driver.get_log("browser") if "422" not in entry["message"]]
        assert errors == []
        browser.click("another")
        wait_for(lambda browser=browser: browser.shown("start"))
    with Store(study.ratings_file, study) as store:
        ratings = store.ratings()
    assert len(ratings) == 20
    results = analyse(study, ratings, simulation=True)  # a driven browser says what it is
    assert results["raters"] == {"used": 2, "finished": 2, "unfinished": 0, "other_kind": 0}
    # By hand: two images of one rater and two of the other. 5 5 4 4, 2 2 2 2, 1 1 1 1, 4 4 3 3.
    found = {row["name"]: row for row in results["methods"]}
    assert {name: row["mos"] for name, row in found.items()} == {
        "HR": 4.5,
        "bicubic": 2.0,
        "nearest": 1.0,
        "srresnet_x4_small": 3.5,
    }
    assert {name: row["dmos"] for name, row in found.items()} == {
        "HR": 5.0,
        "bicubic": (2 + 3) / 2,
        "nearest": (1 + 2) / 2,
        "srresnet_x4_small": 4.0,
    }
    assert {name: row["rank"] for name, row in found.items()} == {
        "HR": 1.0,
        "srresnet_x4_small": 2.0,
        "bicubic": 3.0,
        "nearest": 4.0,
    }
    assert found["HR"]["sd"] == pytest.approx((4 * 0.25 / 3) ** 0.5)
    assert found["bicubic"]["counts"] == {"1": 0, "2": 4, "3": 0, "4": 0, "5": 0}
    assert (results["retest"]["pairs"], results["retest"]["equal"]) == (4, 1)
    assert results["scores_changed"] == 1
    seen = [rating.circumstances for rating in ratings]
    assert {(one.width, one.height, one.ratio, one.zoom, one.fits) for one in seen} == {
        (1280, 800, 1.0, 1.0, True),
        (390, 844, 3.0, 1.0, True),
    }
    assert all(0 <= one.elapsed_ms < 60_000 for one in seen)


@pytest.fixture
def started(page: Callable[..., Page]) -> Page:
    browser = page()
    browser.screen(1280, 800)
    browser.open()
    browser.click("start")
    browser.at(0)
    return browser


@pytest.mark.parametrize(
    ("width", "height", "ratio"),
    [
        (1281, 901, 1),
        (1163, 727, 1.1),
        (1024, 703, 1.25),
        (853, 601, 1.5),
        (801, 599, 1.75),
        (640, 480, 2),
        (500, 915, 2.625),
    ],
)
def test_a_pixel_is_a_pixel_on_any_screen(
    study: Study, page: Callable[..., Page], width: int, height: int, ratio: float
) -> None:
    """What is on the screen equals the file, bit by bit, also where a CSS pixel is no whole number of device pixels."""
    browser = page(f"--force-device-scale-factor={ratio}", f"--window-size={width},{height}")
    browser.open()
    browser.click("start")
    browser.at(0)
    assert browser.script("return devicePixelRatio") == pytest.approx(ratio)
    assert not browser.shown("notice")
    left, top = browser.script("const b = picture.getBoundingClientRect(); return [b.left, b.top]")
    left, top = round(left * ratio), round(top * ratio)
    seen = np.asarray(browser.screenshot())
    with Image.open(study.path(order_of_the_last(study)[0].stimulus)) as picture:
        assert np.array_equal(seen[top : top + 272, left : left + 480], np.asarray(picture))
    # And nothing of it, nor of anything else, around.
    assert (seen[top - 1, left - 1 : left + 481] == 128).all()
    assert (seen[top + 272, left - 1 : left + 481] == 128).all()
    assert (seen[top : top + 272, [left - 1, left + 480]] == 128).all()


def test_another_screen_in_the_middle(started: Page) -> None:
    """The size follows when a window moves to a screen of other pixels."""
    for ratio in (1.25, 2.0, 0.8, 1.0):
        started.screen(1280, 800, ratio)
        wait_for(lambda ratio=ratio: _css_size(started) == pytest.approx([480 / ratio, 272 / ratio], abs=0.01))


def _css_size(page: Page) -> list[float]:
    return page.script("return [parseFloat(picture.style.width), parseFloat(picture.style.height)]")


def test_a_picture_that_does_not_fit_is_told_and_can_be_scrolled(study: Study, started: Page) -> None:
    started.screen(360, 640, 1, phone=True)
    wait_for(lambda: started.shown("notice"))
    assert "larger than this space" in started.text("notice")
    assert started.script("return [stage.scrollWidth, stage.clientWidth]") == [480, 360]
    keep(started, "mos_too_large.png")
    order = order_of_the_last(study)
    started.score(order[0].stimulus.expected or 3)
    started.at(1)
    with Image.open(study.path(order[1].stimulus)) as picture:
        expected = np.asarray(picture)
    started.script("stage.scrollTo(9999, 0)")
    left, top = started.script("const b = picture.getBoundingClientRect(); return [b.left, b.top]")
    assert left == 360 - 480
    seen = np.asarray(started.screenshot())[round(top) : round(top) + 272]
    assert np.array_equal(seen, expected[:, 120:])
    connection = sqlite3.connect(study.ratings_file)
    row = connection.execute("SELECT fits, width, height FROM ratings ORDER BY rater DESC, position DESC").fetchone()
    connection.close()
    assert row == (0, 360, 640)
    started.screen(800, 640)
    wait_for(lambda: not started.shown("notice"))


def test_targets_are_large_enough_for_fingers(started: Page) -> None:
    for width, height in ((320, 568), (390, 844), (844, 390), (1280, 800)):
        started.screen(width, height, 2, phone=True)
        wait_for(lambda width=width: started.script("return innerWidth") == width)
        boxes = started.script(
            "return [...document.querySelectorAll('button')].filter((b) => b.offsetParent).map((b) => {"
            "const r = b.getBoundingClientRect();"
            "return [r.left, r.top, r.right, r.bottom, b.scrollWidth - b.clientWidth] })"
        )
        assert len(boxes) == 6
        for left, top, right, bottom, overflow in boxes:
            assert right - left >= 44
            assert bottom - top >= 44
            assert left >= 0
            assert right <= width
            assert bottom <= height
            assert overflow <= 0, "a word that does not fit its button"
        assert started.script("return document.documentElement.scrollWidth") <= width


def test_a_server_that_goes_away_and_comes_back(study: Study, server: Server, started: Page) -> None:
    """Nothing is thanked for that was not kept, and nothing has to be begun anew."""
    order = order_of_the_last(study)
    server.stop(signal.SIGKILL)
    started.press(str(order[0].stimulus.expected))
    wait_for(lambda: "could not be kept" in started.text("notice"))
    keep(started, "mos_offline.png")
    server.start()
    started.press(str(order[0].stimulus.expected))
    started.at(1)
    assert not started.shown("notice")
    started.press(str(order[1].stimulus.expected))
    started.at(2)


def test_the_keyboard_alone_and_what_a_screen_reader_is_told(study: Study, page: Callable[..., Page]) -> None:
    browser = page()
    browser.screen(1280, 800)
    browser.open()
    assert browser.script("return document.activeElement.id") == "start"
    browser.driver.switch_to.active_element.send_keys("\ue007")  # Enter
    browser.at(0)
    order = order_of_the_last(study)
    for _ in range(20):  # Tab reaches the scale, Enter chooses
        browser.driver.switch_to.active_element.send_keys("\ue004")
        label = browser.script("return document.activeElement.textContent.trim()")
        if re.match(str(order[0].stimulus.expected), label):
            break
    browser.driver.switch_to.active_element.send_keys("\ue007")
    browser.at(1)
    roles = browser.script(
        "return ['where', 'notice', 'scale'].map((id) => document.getElementById(id).getAttribute('role'))"
    )
    assert roles == ["status", "alert", "group"]
    assert browser.driver.find_element("id", "scale").accessible_name == browser.text("question")
    assert browser.driver.find_element("id", "picture").accessible_name == "Picture to rate"
