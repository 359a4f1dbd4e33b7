"""The report in a real browser: its slider by mouse, touch and keyboard, its colours and widths; needs Chromium."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, webdriver
from PIL import Image

from srgan_fast.evaluate import sets
from srgan_fast.evaluate.benchmark import Choice, evaluate_all
from srgan_fast.evaluate.report import Report, read_opinions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section, and a name that is as long as it is hostile."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "hr").mkdir()
    coarse = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(coarse.repeat(5, 0).repeat(5, 1)).save(folder / "hr" / f"{'long' * 30}<script>&.png")
    mos = folder / "mos.json"
    method = '{"name": "' + "long" * 30 + '", "counts": {"1": 4, "2": 3, "3": 2, "4": 1, "5": 0}, "mos": 2.0}'
    mos.write_text(f'{{"kind": "opinion", "raters": {{"used": 5}}, "methods": [{method}]}}')
    report = Report()
    choices = [Choice(method="bicubic"), Choice(model="srresnet_x4_small"), Choice(model="srresnet_x4")]
    results = evaluate_all(folder / "hr", choices, protocol=["y601", "paper", "rgb"], on_image=report.add)
    known = (sets.COLLECTIONS["set5"], "by a test")
    report.write(folder / "page.html", results, known=known, opinions=read_opinions(mos))
    return folder / "page.html"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    found = chromium(tmp_path_factory.mktemp("chromium"), "--hide-scrollbars")
    yield found
    found.quit()


def show(driver: Any, page: Path, width: int, scheme: str = "light", *, script: bool = True) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    driver.get(page.as_uri())


def pixels(driver: Any, selector: str) -> np.ndarray[Any, Any]:
    """What is seen of the first element that is selected."""
    box = driver.execute_script(
        "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
        "const b = e.getBoundingClientRect(); return [b.x + scrollX, b.y + scrollY, b.width, b.height]",
        selector,
    )
    clip = dict(zip(("x", "y", "width", "height"), box, strict=True), scale=1)
    found = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip})
    with Image.open(io.BytesIO(base64.b64decode(found["data"]))) as image:
        return np.array(image.convert("RGB")).astype(int)


def value(driver: Any) -> int:
    return int(driver.find_element("css selector", ".slider input").get_property("value"))


@pytest.mark.parametrize("width", [320, 360, 390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(driver: Any, page: Path, width: int, scheme: str) -> None:
    show(driver, page, width, scheme)
    # Tables may scroll in a frame of their own; whatever else sticks out is not seen.
    over = driver.execute_script(
        "return [...document.body.querySelectorAll('*')].filter(e => !e.closest('.wide, svg, select')"
        " && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert over == []
    assert driver.execute_script("return document.documentElement.scrollWidth") == width
    assert driver.get_log("browser") == []  # among these would be what the policy has refused


def test_the_line_follows_mouse_finger_and_keys(driver: Any, page: Path) -> None:
    show(driver, page, 1280)
    stage = driver.find_element("css selector", ".stage")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
    width = stage.size["width"]
    actions = webdriver.ActionChains(driver).move_to_element_with_offset(stage, round(-0.3 * width), 0)
    actions.click_and_hold().move_by_offset(round(0.4 * width), 0).release().perform()
    assert value(driver) == 60
    driver.find_element("css selector", ".slider input").send_keys(webdriver.Keys.ARROW_LEFT * 5)
    assert value(driver) == 55

    show(driver, page, 390)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    left, top, width, height = driver.execute_script(
        "const e = document.querySelector('.stage'); e.scrollIntoView({block: 'center'});"
        "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
    )
    for kind, part in (("Start", 0.3), ("Move", 0.5), ("Move", 0.8), ("End", None)):
        points = [] if part is None else [{"x": left + part * width, "y": top + height / 2}]
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert value(driver) == 80


def test_each_side_shows_what_is_chosen_for_it(driver: Any, page: Path) -> None:
    """Pixels: HR on both sides of the line, then bicubic on the left of it only."""
    from selenium.webdriver.support.ui import Select

    show(driver, page, 1280)
    left, right = (Select(found) for found in driver.find_elements("css selector", ".slider select"))
    assert (left.first_selected_option.text, right.first_selected_option.text) == ("bicubic", "srresnet_x4")
    right.select_by_visible_text("HR")
    seen = pixels(driver, ".stage")
    left.select_by_visible_text("HR")
    both = pixels(driver, ".stage")
    differs = (seen != both).any((0, 2))
    middle = len(differs) // 2
    assert differs[: middle - 2].mean() > 0.9
    assert not differs[middle + 2 :].any()
    # Every pixel of the crop is a square of as many pixels on the screen.
    times = both.shape[0] // 144
    assert both.shape[:2] == (144 * times, 144 * times)
    inside = both[:, : middle - 4 * times].reshape(144, times, -1, times, 3)
    assert (inside == inside[:, :1, :, :1]).all()


def test_colours_by_the_system_and_by_hand(driver: Any, page: Path) -> None:
    from selenium.webdriver.support.ui import Select

    for scheme, other in (("light", "dark"), ("dark", "light")):
        show(driver, page, 1280, scheme)
        chosen = Select(driver.find_element("css selector", ".theme select"))
        for name, dark in (("", scheme), (other, other), (scheme, scheme), ("", scheme)):
            chosen.select_by_value(name)
            ink, ground = (
                driver.execute_script(f"return getComputedStyle(document.body).{key}")
                for key in ("color", "backgroundColor")
            )
            brighter = sum(map(int, ink[4:-1].split(","))) > sum(map(int, ground[4:-1].split(",")))
            assert brighter == (dark == "dark")


def test_without_a_script_the_pictures_are_there(driver: Any, page: Path) -> None:
    show(driver, page, 390, script=False)
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert driver.find_elements("css selector", ".slider") == []
    assert not driver.find_element("css selector", ".theme").is_displayed()
    crops = driver.find_elements("css selector", ".crops img")
    assert [crop.get_attribute("alt").split(" crop")[0] for crop in crops] == [
        "LR",
        "bicubic",
        "srresnet_x4_small",
        "srresnet_x4",
        "HR",
    ]
    for crop in crops:
        assert driver.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", crop)
        assert crop.size == {"width": 144, "height": 144}
