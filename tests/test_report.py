"""The page that `srgan-fast evaluate --report` writes: what it says, what it shows, that it loads nothing."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from srgan_fast import weights
from srgan_fast.errors import InputError
from srgan_fast.evaluate import sets
from srgan_fast.evaluate.benchmark import Choice, Comparison, evaluate_all
from srgan_fast.evaluate.metrics import PROTOCOLS
from srgan_fast.evaluate.report import Report, charts, published, read_opinions
from srgan_fast.evaluate.report.pictures import BINS, ERROR_LIMIT, error_map, spectrum
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.resize import imresize_down, imresize_up

Run = Callable[..., tuple[int, str, str]]


def save(path: Path, height: int, width: int) -> None:
    coarse = np.random.default_rng(height * 1000 + width).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3))
    pixels = coarse.astype(np.uint8).repeat(6, axis=0).repeat(6, axis=1)[:height, :width]
    Image.fromarray(pixels).save(path)


@pytest.fixture
def hr_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hr"
    folder.mkdir()
    save(folder / "a.png", 32, 51)
    save(folder / "b&<i>.png", 45, 38)
    return folder


class Tags(HTMLParser):
    """What a page has of pictures, addresses, anchors and text; every element must be closed in its turn."""

    VOID = ("meta", "img", "br", "wbr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: dict[str, str] = {}
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.styled = 0
        self.meta: dict[str, str] = {}
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag == "img":
            assert values["alt"] not in self.images
            self.images[values["alt"]] = values["src"]
        if tag == "meta" and "http-equiv" in values:
            self.meta[values["http-equiv"]] = values["content"]
        self.addresses += [value for key, value in values.items() if key in ("src", "href", "action", "srcset")]
        self.ids += [values["id"]] if "id" in values else []
        self.styled += "style" in values
        assert not [key for key in values if key.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pixels(address: str) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        return np.array(image)


def test_the_command(run: Run, hr_folder: Path, tmp_path: Path) -> None:
    page, file = tmp_path / "page.html", tmp_path / "scores.json"
    code, out, _ = run(
        "evaluate", hr_folder, "--method", "bicubic", "--method", "nearest", "--report", page, "--json", file
    )
    assert code == 0
    results = json.loads(file.read_text())
    text = page.read_text()
    for result in results:
        assert list(result["mean"]) == list(PROTOCOLS)  # all, where a page is asked for
        for value in result["mean"].values():
            assert f"{value['psnr_db']:.3f}" in out
            assert f"{value['psnr_db']:.3f}</td>" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hr", "page.html", "scores.json"]

    tags = Tags(text)
    names = ("a.png", "b&<i>.png")
    crops = {f"{crop} crop of {name}" for name in names for crop in ("LR", "bicubic", "nearest", "HR")}
    maps = {f"error map of {method} on {name}" for name in names for method in ("bicubic", "nearest")}
    assert set(tags.images) == crops | maps | {f"{name}, the crop framed" for name in names}
    inner = [address for address in tags.addresses if address.startswith("#")]
    assert {address[1:] for address in inner} <= set(tags.ids)
    assert len(tags.ids) == len(set(tags.ids))
    assert all(re.match(r"data:image/(png|jpeg);base64,", each) for each in tags.addresses if each not in inner)
    assert not re.search(r"https?://|url\(|@import", text)


def test_names_are_text(hr_folder: Path, tmp_path: Path) -> None:
    """Those of methods, of files and of raters' methods: nothing in them becomes part of the page."""
    made = tmp_path / "made"
    made.mkdir()
    save(made / "a.png", 32, 48)
    save(made / "b&<i>.png", 44, 36)
    bad = '</style><script>"&_'
    report = Report()
    results = evaluate_all(hr_folder, [Choice(folder=made, name=bad)], on_image=report.add)
    read = read_opinions(opinions(tmp_path / "mos.json", method={"name": bad}))
    page = report.page(results, known=(sets.COLLECTIONS["set5"], bad), opinions=read)
    tags = Tags(page)
    assert f"{bad} crop of b&<i>.png" in tags.images
    assert bad not in page
    assert page.count("<script>") == 1


def test_only_its_own_style_and_script_may_run(hr_folder: Path) -> None:
    report = Report()
    results = evaluate_all(hr_folder, [Choice(method="bicubic")], on_image=report.add)
    page = report.page(results)
    tags = Tags(page)
    policy = tags.meta["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert tags.styled == 0  # which the policy would not admit
    assert "prefers-color-scheme: dark" in page
    assert "data-theme=dark" in page


def test_it_says_how_it_was_measured(hr_folder: Path) -> None:
    report = Report()
    results = evaluate_all(hr_folder, [Choice(method="bicubic")], protocol=["y601", "paper"], on_image=report.add)
    results[0]["images"][0]["scores"]["paper"] = {"psnr_db": None, "ssim": 1.0, "note": "as good as it gets"}
    page = report.page(results)
    assert "2 images, LR made by imresize. bicubic in fp32." in page
    assert "LR from" not in page
    for name in ("y601", "paper"):
        assert page.count(html.escape(PROTOCOLS[name].description)) == 1
    assert "<td>inf</td><td>1.0000</td>" in page
    assert page.count("as good as it gets") == 1
    # A whole number of pixels on the screen for each pixel of the crop, which is as large as the images allow.
    assert ".s48x32 { --width: 48; --height: 32 }" in page
    assert ".s36x44 { --width: 36; --height: 44 }" in page
    assert set(re.findall(r"--(?:zoom|magnify): (\S+?)[;\s}]", page)) == {"1", "2", "3", "4"}
    for entry in results[0]["images"]:
        entry["lr"] = "<small>.png"
    page = report.page(results)
    assert "LR read from files" in page
    assert page.count("LR from &lt;small&gt;.png") == 2


def test_a_crop_is_where_bicubic_fails() -> None:
    hr = torch.full((3, 400, 480), 120, dtype=torch.uint8)
    hr[:, 300:330:2, 400:430] = 255
    lr = imresize_down(hr, 4)
    report = Report()
    report.add(Comparison("one.png", "bicubic", lr, imresize_up(lr, 4), hr, {}))
    report.add(Comparison("one.png", "all right", lr, hr, hr, {}))
    (shown,) = report._shown.values()
    found = {label: np.array(Image.open(io.BytesIO(data))) for label, data in shown.crops.items()}
    original = np.array(Image.open(io.BytesIO(shown.original)))
    assert {label: each.shape for label, each in found.items()} == {
        "LR": (36, 36, 3),
        "bicubic": (144, 144, 3),
        "all right": (144, 144, 3),
    }
    assert (shown.width, shown.height) == (144, 144)
    assert (original == 255).sum() == (hr == 255).sum()
    np.testing.assert_array_equal(found["all right"], original)
    assert (found["bicubic"] != original).any()


def test_an_error_map_has_the_scale_that_is_stated() -> None:
    hr = torch.full((3, 40, 8), 100, dtype=torch.uint8)
    sr = hr + torch.arange(40, dtype=torch.uint8)[None, :, None]
    found = error_map(sr, hr)
    lightness = found.sum(0)[:, 0].to(torch.int64)
    assert found[:, 0, 0].tolist() == [0, 0, 4]
    assert (lightness[1 : ERROR_LIMIT + 1] > lightness[:ERROR_LIMIT]).all()
    assert (lightness[ERROR_LIMIT:] == lightness[-1]).all()
    torch.testing.assert_close(error_map(hr, sr), found, rtol=0, atol=0)
    large = error_map(torch.zeros(3, 1030, 20, dtype=torch.uint8), torch.ones(3, 1030, 20, dtype=torch.uint8))
    assert large.shape == (3, 344, 7)
    assert len(large.flatten(1).unique(dim=1)[0]) == 1


def test_a_wave_is_in_the_bin_of_its_frequency() -> None:
    x = torch.arange(256, dtype=torch.float64)
    for cycles in (16, 52, 100):
        wave = (128 + 100 * torch.cos(2 * math.pi * cycles / 256 * x)).round().to(torch.uint8)
        for image in (wave.expand(3, 192, 256), wave[:, None].expand(3, 256, 192)):
            found = spectrum(image.contiguous())
            at = int(cycles / 256 * 2 * BINS)
            # On the border of two bins the window spreads it over both.
            assert abs(int(np.nanargmax(found)) - at) <= 1
            far = np.r_[found[: at - 2], found[at + 3 :]]
            assert np.nanmax(found) - np.nanmax(far) > 30
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 256, 256), dtype=np.uint8)).expand(3, -1, -1)
    flat = spectrum(noise)[4:]  # below, few frequencies are averaged
    assert flat.max() - flat.min() < 1.5
    variance = float(noise[0].double().var()) * (219 / 255) ** 2  # luma has the studio range
    assert flat.mean() == pytest.approx(10 * math.log10(variance), abs=0.3)


def test_published_figures_and_their_footnotes(hr_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report()
    results = evaluate_all(hr_folder, [Choice(method="nearest")], protocol=["paper", "y601"], on_image=report.add)
    known = (sets.COLLECTIONS["set14"], "by its name")
    page = report.page(results, known=known)
    assert "nearest ×4 on Set14" in page
    assert "The folder is taken for Set14 by its name." in page
    ours = results[0]["mean"]["paper"]
    row = f"<td>nearest</td><td>{ours['psnr_db']:.2f}</td><td>{ours['ssim']:.4f}</td>"
    open_table = re.findall(r"<details open><summary>(\w+)</summary>(.*?)</details>", page, re.DOTALL)
    assert [name for name, _ in open_table] == ["Set14"]
    assert page.count(f'<tr class="ours">{row}') == 1
    assert row in open_table[0][1]
    # Where the second paper sets one method's opinion beside another's measures, a footnote says so.
    swapped = re.search(
        r"SRGAN-VGG19(<sup>.*?)</td><td>26\.44</td><td>0\.7518</td><td>3\.72</td>",
        open_table[0][1].replace("<wbr>", ""),
    )
    assert swapped
    notes = [
        re.search(rf'<li id="{anchor}">(.*?)</li>', page)[1]  # type: ignore[index]
        for anchor in re.findall(r'href="#(note\d+)"', swapped[1])
    ]
    assert any("whose MOS is 3.57" in note for note in notes)
    for remark in published.remarks():
        assert html.escape(remark) in page

    # Nothing is set beside the papers' figures that is not comparable.
    del results[0]["mean"]["paper"]
    for result, which, words in (
        (results, known, "add it to --protocol"),
        (evaluate_all(hr_folder, [Choice(method="nearest")], protocol=["paper"], scale=2), known, "this run is x2"),
        (results, None, "none of the papers"),
    ):
        page = report.page(result, known=which)
        assert words in html.unescape(page)
        assert 'class="ours"' not in page


def test_the_figures_agree_among_the_papers() -> None:
    """The second paper repeats the first, but for what the notes say."""
    for name in ("Set5", "Set14"):
        rows = {(figure.source, figure.method): figure for figure in published.figures(name)}
        first = {key[1]: value for key, value in rows.items() if key[0] == "Ledig et al."}
        pairs = {
            "SRResNet-MSE": "SRResNet (16 blocks)",
            "SRResNet-VGG19": "SRResNet-VGG22",
            "SRGAN-MSE": "SRGAN-MSE",
            "SRGAN-VGG19": "SRGAN-VGG22",
        }
        for mine, theirs in pairs.items():
            second = rows["Khoa and Huy", mine]
            assert (second.psnr_db, second.ssim) == (first[theirs].psnr_db, first[theirs].ssim)
            assert (second.mos == first[theirs].mos) == ((name, mine) != ("Set14", "SRGAN-VGG19"))
            assert any("VGG22" in note for note in second.notes) == mine.endswith("VGG19")
    assert [len(published.figures(name)) for name in published.SETS] == [16, 16, 9]
    for source in published.sources():
        assert re.search(r"20\d\d", source)


def test_sets_are_recognised(tmp_path: Path, shared_data: Path) -> None:
    folder = tmp_path / "BSD_100"
    folder.mkdir()
    for number in range(99):
        (folder / f"{number}.png").touch()
    assert sets.recognise(folder) is None
    (folder / "99.png").touch()
    found = sets.recognise(folder)
    assert found is not None
    assert found[0].name == "bsd100"
    assert "not by their digests" in found[1]
    if (shared_data / "Set5").is_dir():
        assert sets.recognise(shared_data / "Set5") == (sets.COLLECTIONS["set5"], "by the digests of its files")


def network(path: Path, blocks: int, steps: int) -> Path:
    torch.manual_seed(blocks)
    config = GeneratorConfig(blocks=blocks, width=4)
    weights.save(path, Generator(config).eval(), name=path.stem, recipe={"steps_done": steps})
    return path


def test_depths_are_compared_where_there_are_several(hr_folder: Path, tmp_path: Path) -> None:
    files = [network(tmp_path / f"b{blocks}.safetensors", blocks, steps) for blocks, steps in ((3, 20), (1, 10))]
    results = evaluate_all(hr_folder, [Choice(method="bicubic"), *(Choice(weights=file) for file in files)])
    report = Report()
    for result in results:
        for entry in result["images"]:
            image = torch.zeros(3, 32, 32, dtype=torch.uint8)
            report.add(Comparison(entry["name"], result["method"], imresize_down(image, 4), image, image, {}))
    page = report.page(results)
    section = page[page.index('id="depth"') :]
    assert re.findall(r"<tr><td>(\w+)</td><td>(\d+)</td>", section) == [("b1", "1"), ("b3", "3")]
    assert "different numbers of steps" in section
    assert section.count("<circle") == 2
    assert section.count('<path class="line') == 1  # of the legend: points that do not compare are not joined
    results[1]["network"]["steps"] = 10
    section = report.page(results)[page.index('id="depth"') :]
    assert "different numbers" not in section
    assert section.count('<path class="line') == 2
    # Several of one depth: their mean is what is joined, and each is a point beside it.
    twin = copy.deepcopy(results[2])
    twin["method"], twin["mean"]["y601"]["psnr_db"] = "twin", results[2]["mean"]["y601"]["psnr_db"] + 1
    report_of_three = report.page([*results, twin])
    section = report_of_three[report_of_three.index('id="depth"') :]
    assert section.count("<circle") == 2 + 3
    joined, *_ = re.findall(r'<path class="line c0" d="M([\d.L ]+)"', section)
    places = re.findall(r'<circle class="(c\d)" cx="([\d.]+)" cy="([\d.]+)"', section)
    assert joined == "L".join(f"{x} {y}" for look, x, y in places if look == "c0")
    shallow = [(look, float(y)) for look, x, y in places if x == places[0][1]]
    assert [look for look, _ in shallow] == ["c0", "c1", "c1"]
    assert shallow[0][1] == pytest.approx((shallow[1][1] + shallow[2][1]) / 2, abs=0.06)
    results[1]["network"]["steps"] = None
    assert "is not known" in report.page(results)
    assert 'id="depth"' not in report.page(results[:2])


def opinions(path: Path, **changes: Any) -> Path:
    counts = {"1": 4, "2": 3, "3": 2, "4": 1, "5": 0}
    method = {"name": "bicubic", "counts": counts, "mos": 2.0, "ci95": [1.25, 2.75], "ratings": 10}
    unrated = {"name": "nobody's", "counts": dict.fromkeys("12345", 0), "mos": None, "ci95": None, "ratings": 0}
    content = {"kind": "opinion", "raters": {"used": 5}, "methods": [method | changes.pop("method", {}), unrated]}
    path.write_text(json.dumps(content | changes))
    return path


def test_opinions_are_drawn_with_their_mean(run: Run, hr_folder: Path, tmp_path: Path) -> None:
    file, page = opinions(tmp_path / "mos.json"), tmp_path / "page.html"
    code, _, err = run("evaluate", hr_folder, "--method", "bicubic", "--report", page, "--mos", file)
    assert (code, err) == (0, "")
    text = page.read_text()
    Tags(text)
    section = text[text.index('id="opinions"') :]
    assert "5 human raters" in section
    assert "mean 2.00, 95% interval 1.25 to 2.75; 10 ratings" in section
    heights = [float(each) for each in re.findall(r'<rect class="bar".*?height="([\d.]+)"', section)]
    assert [round(height / heights[0], 2) for height in heights] == [1, 0.75, 0.5, 0.25, 0]
    (mean,) = re.findall(r'class="mean" d="M([\d.]+) ', section)
    labels = dict(re.findall(r'<text x="([\d.]+)" y="114" text-anchor="middle">(\d)</text>', section))
    assert labels[mean] == "2"
    assert html.escape("nobody's") not in section


def test_opinions_as_a_study_gives_them(run: Run, tmp_path: Path) -> None:
    """From what is in a study's folder, by the analysis itself: its raters are programs that say they are browsers."""
    pytest.importorskip("scipy", reason="the extra mos is not installed")
    from raters import simulate, small_study

    from srgan_fast.evaluate.mos.store import Store

    given = {"HR": 5, "bicubic": 3, "nearest": 1}
    study = small_study(tmp_path)
    file = tmp_path / "mos.json"
    for origin, told in (("simulated", ["--simulation"]), ("browser", [])):
        with Store(study.ratings_file, study) as store:
            for _ in range(2):
                simulate(study, store, lambda showing: given[showing.stimulus.method], origin)
        code, _, err = run("mos", "analyse", study.folder, "--json", file, *told)
        assert (code, err) == (0, "")
        if told:
            with pytest.raises(InputError, match="got simulation"):
                read_opinions(file)
    read = read_opinions(file)
    assert read["raters"] == 2
    assert {method["name"]: method["mos"] for method in read["methods"]} == given
    assert {method["ratings"] for method in read["methods"]} == {6}  # three images by two raters


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "simulation"}, "human raters.*simulation"),
        ({"raters": {"used": 0}}, "human raters.*0 raters"),
        ({"method": {"mos": 4.0}}, "do not give its mean"),
        ({"method": {"counts": {"1": 1}}}, "another or a damaged file"),
        ({"methods": []}, "human raters"),
        ({"methods": 3}, "another or a damaged file"),
    ],
)
def test_opinions_of_no_human_are_refused(
    run: Run, hr_folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    file = opinions(tmp_path / "mos.json", **changes)
    with pytest.raises(InputError, match=words):
        read_opinions(file)
    page = tmp_path / "page.html"
    code, _, err = run("evaluate", hr_folder, "--method", "bicubic", "--report", page, "--mos", file)
    assert (code, err.count("\n")) == (InputError.exit_code, 1)
    assert not page.exists()


def test_opinions_need_a_page_and_a_file(run: Run, hr_folder: Path, tmp_path: Path) -> None:
    code, _, err = run("evaluate", hr_folder, "--method", "bicubic", "--mos", opinions(tmp_path / "mos.json"))
    assert (code, err.count("\n")) == (InputError.exit_code, 1)
    assert "--report" in err
    for content in (b"", b"[1]", b"\xff", b"[" * 100_000):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(InputError, match="mos analyse"):
            read_opinions(tmp_path / "bad.json")
    with pytest.raises(InputError, match="readable file"):
        read_opinions(tmp_path / "absent.json")


def test_many_images_are_scored_but_not_all_shown(hr_folder: Path) -> None:
    report = Report(pictures=1)
    results = evaluate_all(hr_folder, [Choice(method="bicubic")], on_image=report.add)
    page = report.page(results)
    tags = Tags(page)
    assert all("a.png" in name for name in tags.images)
    assert "Of 2 images, 1 are shown." in page
    assert "<h3>b&amp;&lt;i&gt;.png</h3>" in page
    assert f"{results[0]['images'][1]['scores']['y601']['psnr_db']:.3f}" in page


def test_axes_enclose_the_values() -> None:
    for low, high in ((0.0, 0.5), (-13.2, 64.9), (30.645, 30.789), (5.0, 16.0), (7.0, 7.0), (-1e-3, 1e5)):
        ticks = charts._ticks(low, high)
        assert ticks[0] <= low + 1e-6 * abs(high)
        assert ticks[-1] >= high - 1e-6 * abs(high)
        assert 2 <= len(ticks) <= 8
        np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])
