"""`srgan-fast evaluate` and `srgan-fast data`: pairing, results, report, digests, and what they say in trouble."""

from __future__ import annotations

import hashlib
import html
import http.server
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srgan_fast import weights
from srgan_fast.errors import InputError, OutputError, ShapeError, UsageError
from srgan_fast.evaluate import sets
from srgan_fast.evaluate.benchmark import Comparison, evaluate, pair
from srgan_fast.evaluate.metrics import PROTOCOLS, score
from srgan_fast.evaluate.report import Report, write_text
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.resize import imresize_down, imresize_up, nearest_up

Run = Callable[..., tuple[int, str, str]]


def save(path: Path, height: int, width: int, *, grey: bool = False, flat: bool = False) -> torch.Tensor:
    """Write a picture and return its pixels as RGB, [3, h, w]."""
    generator = np.random.default_rng(height * 1000 + width)
    coarse = generator.integers(0, 256, (height // 6 + 1, width // 6 + 1, 1 if grey else 3), dtype=np.uint8)
    pixels = coarse.repeat(6, axis=0).repeat(6, axis=1)[:height, :width]
    if flat:
        pixels = np.full_like(pixels, 90)
    Image.fromarray(pixels[..., 0] if grey else pixels).save(path)
    return torch.from_numpy(pixels.repeat(3 // pixels.shape[2], axis=2)).permute(2, 0, 1)


@pytest.fixture
def hr_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hr"
    folder.mkdir()
    save(folder / "b.png", 45, 38)
    save(folder / "a.png", 32, 51, grey=True)
    (folder / "notes.txt").write_text("not an image")
    return folder


# Results.


@pytest.mark.parametrize("method", ["bicubic", "nearest"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_results_are_what_the_parts_give(hr_folder: Path, method: str, scale: int) -> None:
    results = evaluate(hr_folder, method=method, protocol=["y601", "paper", "rgb"], scale=scale)
    assert list(results) == ["method", "scale", "precision", "mean", "images"]
    assert (results["method"], results["scale"], results["precision"]) == (method, scale, "fp32")
    assert [entry["name"] for entry in results["images"]] == ["a.png", "b.png"]
    found = []
    for name, entry in zip(("a.png", "b.png"), results["images"], strict=True):
        hr = torch.from_numpy(np.array(Image.open(hr_folder / name).convert("RGB"))).permute(2, 0, 1)
        hr = hr[:, : hr.shape[1] // scale * scale, : hr.shape[2] // scale * scale]
        sr = {"bicubic": imresize_up, "nearest": nearest_up}[method](imresize_down(hr, scale), scale)
        for protocol in ("y601", "paper", "rgb"):
            expected = score(hr, sr, protocol, scale)
            assert entry["scores"][protocol] == {"psnr_db": expected.psnr_db, "ssim": expected.ssim}
        found.append(entry["scores"]["y601"]["psnr_db"])
    assert results["mean"]["y601"]["psnr_db"] == pytest.approx(sum(found) / 2)


def test_an_infinite_psnr_is_null_with_a_note(tmp_path: Path) -> None:
    save(tmp_path / "flat.png", 24, 24, flat=True)
    save(tmp_path / "other.png", 24, 24)
    results = evaluate(tmp_path, method="bicubic")
    flat = results["images"][0]["scores"]["y601"]
    assert flat["psnr_db"] is None
    assert "infinite" in flat["note"]
    assert results["mean"]["y601"]["psnr_db"] is None
    assert "infinite" in results["mean"]["y601"]["note"]
    assert math.isfinite(results["images"][1]["scores"]["y601"]["psnr_db"])
    json.dumps(results, allow_nan=False)


@pytest.fixture
def tiny_x2(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    path = tmp_path / "tiny_x2.safetensors"
    weights.save(path, Generator(GeneratorConfig(scale=2, blocks=2, width=8)).eval(), name="tiny_x2", recipe={})
    return path


def test_weights_run_in_fp32_on_the_reference(hr_folder: Path, tiny_x2: Path) -> None:
    seen: list[Comparison] = []
    results = evaluate(hr_folder, weights=tiny_x2, on_image=seen.append)
    assert (results["method"], results["scale"], results["precision"]) == ("tiny_x2", 2, "fp32")
    network = weights.load(tiny_x2).network
    for comparison in seen:
        with torch.no_grad():
            raw = network(comparison.lr[None] / 255.0)
        expected = torch.floor(((raw + 1) / 2).clamp(0, 1) * 255 + 0.5)[0]
        # Folding moves sums by an ulp, which moves a value on a boundary by one step.
        assert (expected - comparison.sr.to(torch.float32)).abs().max() <= 1
        assert (expected != comparison.sr).float().mean() < 0.01
    with pytest.raises(UsageError, match="expected scale 2"):
        evaluate(hr_folder, weights=tiny_x2, scale=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "lanczos"}, "bicubic, nearest"),
        ({"method": "bicubic", "model": "srresnet_x4"}, "got several"),
        ({"method": "bicubic", "precision": "bf16"}, "only precision"),
        ({"method": "bicubic", "scale": 1}, "2 or more"),
        ({"method": "bicubic", "protocol": ["y602"]}, "y601, paper, rgb"),
        ({"model": "nothing_x4"}, "nothing_x4"),
    ],
)
def test_options_that_do_not_fit(hr_folder: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        evaluate(hr_folder, **options)  # type: ignore[arg-type]


def test_folders_and_images_that_cannot_be_used(tmp_path: Path, hr_folder: Path) -> None:
    with pytest.raises(InputError, match="folder of images"):
        evaluate(tmp_path / "absent", method="bicubic")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="got none"):
        evaluate(empty, method="bicubic")
    save(hr_folder / "small.png", 16, 40)
    with pytest.raises(ShapeError, match=r"small\.png.*at least 19"):
        evaluate(hr_folder, method="bicubic")
    save(hr_folder / "small.png", 3, 40)
    with pytest.raises(InputError, match=r"at least 4 pixels.*small\.png"):
        evaluate(hr_folder, method="bicubic")
    (hr_folder / "small.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"small\.png"):
        evaluate(hr_folder, method="bicubic")


# LR from a folder.


def paths(*names: str) -> list[Path]:
    return [Path(name) for name in names]


def test_pairs_by_stem_then_by_lr() -> None:
    pairs = pair(
        paths("img.png", "img_1.png", "cat.jpg", "odd[1].png"),
        paths("img_1_SRF_4_LR.png", "img_LRx4.png", "cat.png", "odd[1]_LR.bmp"),
    )
    assert {key.name: value.name for key, value in pairs.items()} == {
        "img.png": "img_LRx4.png",
        "img_1.png": "img_1_SRF_4_LR.png",
        "cat.jpg": "cat.png",
        "odd[1].png": "odd[1]_LR.bmp",
    }


@pytest.mark.parametrize(
    ("hr", "lr", "words"),
    [
        (["a.png", "b.png"], ["a.png"], ["b.png"]),
        (["a.png"], ["a.png", "c_LR.png"], ["c_LR.png"]),
        (["a.png", "b.png"], ["a_LR.png", "c.png"], ["b.png", "c.png"]),
        (["a.png"], ["a.png", "a_LR.png"], ["a_LR.png"]),
        (["a.png"], ["a_x2_LR.png", "a_x4_LR.png"], ["a_x2_LR.png", "a_x4_LR.png", "keep one"]),
        (["a.png"], ["a.png", "a.jpg"], ["a.png", "a.jpg", "keep one"]),
        (["a.png", "a.jpg"], ["a.png"], ["a.png", "a.jpg", "rename one"]),
        (["a.png"], ["a_small.png"], ["a.png", "a_small.png"]),
    ],
)
def test_unpaired_files_are_named(hr: list[str], lr: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        pair(paths(*hr), paths(*lr))
    for word in words:
        assert word in str(error.value)


def test_lr_from_a_folder(tmp_path: Path, hr_folder: Path) -> None:
    lr_folder = tmp_path / "lr"
    lr_folder.mkdir()
    for name in ("a", "b"):
        hr = torch.from_numpy(np.array(Image.open(hr_folder / f"{name}.png").convert("RGB"))).permute(2, 0, 1)
        lr = imresize_down(hr[:, : hr.shape[1] // 4 * 4, : hr.shape[2] // 4 * 4], 4)
        Image.fromarray(lr.permute(1, 2, 0).numpy()).save(lr_folder / f"{name}_SRF_4_LR.png")
    read, made = evaluate(hr_folder, method="bicubic", lr_folder=lr_folder), evaluate(hr_folder, method="bicubic")
    assert read["mean"] == made["mean"]
    assert [entry["lr"] for entry in read["images"]] == ["a_SRF_4_LR.png", "b_SRF_4_LR.png"]
    assert [entry["lr"] for entry in made["images"]] == ["imresize", "imresize"]
    with pytest.raises(InputError, match=r"expected 25x16 pixels .*got 12x8"):
        evaluate(hr_folder, method="bicubic", lr_folder=lr_folder, scale=2)


# The command.

CROPS = ("LR", "bicubic", "SR", "HR")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.images.append(values["alt"] or "")
        self.addresses += [value for key, value in attrs if key in ("src", "href") and value]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_command(run: Run, hr_folder: Path, tmp_path: Path) -> None:
    page, file = tmp_path / "page.html", tmp_path / "scores.json"
    (hr_folder / "b.png").rename(hr_folder / "b&<i>.png")
    code, out, _ = run(
        "evaluate", hr_folder, "--method", "bicubic", "--protocol", "y601,paper", "--report", page, "--json", file
    )
    assert code == 0
    assert "y601" in out
    assert "paper" in out
    assert "fp32" in out
    results = json.loads(file.read_text())
    assert f"{results['mean']['paper']['psnr_db']:.3f}" in out

    tags = Tags()
    tags.feed(page.read_text())
    assert tags.open == []
    assert tags.images == [f"{crop} crop of {name}" for name in ("a.png", "b&<i>.png") for crop in CROPS]
    assert all(address.startswith("data:image/png;base64,") for address in tags.addresses)
    assert "prefers-color-scheme: dark" in page.read_text()
    assert not re.search(r"https?://", page.read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hr", "page.html", "scores.json"]


def test_the_report_says_how_it_was_measured(hr_folder: Path) -> None:
    report = Report()
    results = evaluate(hr_folder, method="bicubic", protocol=["y601", "paper"], on_image=report.add)
    results["images"][0]["scores"]["paper"] = {"psnr_db": None, "ssim": 1.0, "note": "as good as it gets"}
    page = report.page(results)
    assert "2 images, LR made by imresize, computed in fp32." in page
    assert "LR from" not in page
    for name in ("y601", "paper"):
        assert page.count(html.escape(PROTOCOLS[name].description)) == 1
        assert page.count(f"<td>{name}</td>") == 3  # the mean and two images
    assert "<td>inf</td><td>1.0000</td>" in page
    assert page.count("as good as it gets") == 1
    # A whole number of pixels on the screen for each pixel of the crop, which is as large as the images allow.
    assert "--width: 48; --height: 32" in page
    assert "--width: 36; --height: 44" in page
    assert re.findall(r"--zoom: (\d+)\s*[;}]", page) == ["1", "2"]

    for entry in results["images"]:
        entry["lr"] = "<small>.png"
    page = report.page(results)
    assert "LR read from files" in page
    assert page.count("LR from &lt;small&gt;.png") == 2


def test_json_to_stdout_is_only_json(run: Run, hr_folder: Path) -> None:
    code, out, _ = run("evaluate", hr_folder, "--method", "nearest", "--json", "-")
    assert code == 0
    assert json.loads(out)["method"] == "nearest"


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_no_place_for_the_result(run: Run, hr_folder: Path, tmp_path: Path, option: str) -> None:
    for target in (tmp_path / "absent" / "file", hr_folder):
        code, out, err = run("evaluate", hr_folder, "--method", "bicubic", option, target)
        assert code == OutputError.exit_code
        assert out == ""
        assert err.startswith("srgan-fast: expected a file in a folder that exists")
        assert err.count("\n") == 1


def test_a_crop_is_where_bicubic_fails(tmp_path: Path) -> None:
    hr = torch.full((3, 400, 480), 120, dtype=torch.uint8)
    hr[:, 300:330:2, 400:430] = 255
    lr = imresize_down(hr, 4)
    report = Report()
    report.add(Comparison("one.png", lr, imresize_up(lr, 4), hr, {}))
    sizes, found = [], {}
    (crops,) = report._crops
    for label, data in crops.files.items():
        (tmp_path / label).write_bytes(data)
        with Image.open(tmp_path / label) as image:
            sizes.append(image.size)
            found[label] = np.array(image)
    assert sizes == [(36, 36), (144, 144), (144, 144), (144, 144)]
    assert (crops.width, crops.height) == (144, 144)
    assert (found["HR"] == 255).sum() == (hr == 255).sum()
    np.testing.assert_array_equal(found["bicubic"], found["SR"])


def test_set5_by_the_command(run: Run, shared_data: Path) -> None:
    if not (shared_data / "Set5").is_dir():
        pytest.skip(f"no Set5 in {shared_data}")
    options = ("--method", "bicubic", "--protocol", "y601,paper", "--json", "-")
    code, out, _ = run("evaluate", shared_data / "Set5", *options)
    assert code == 0
    mean = json.loads(out)["mean"]
    assert mean["y601"] == {"psnr_db": pytest.approx(28.430, abs=0.005), "ssim": pytest.approx(0.8111, abs=0.0003)}
    assert mean["paper"] == {"psnr_db": pytest.approx(28.426, abs=0.005), "ssim": pytest.approx(0.8211, abs=0.0003)}


# Sets.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, dict[str, tuple[int, bytes, int]]]]:
    """A web server on this machine: name -> (status, body, stated length)."""
    pages: dict[str, tuple[int, bytes, int]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, length = pages.get(self.path.lstrip("/"), (404, b"", 0))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/", pages
        httpd.shutdown()
        thread.join()


BODY = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
KNOWN = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def small_set(
    server: tuple[str, dict[str, tuple[int, bytes, int]]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[int, bytes, int]]:
    address, pages = server
    items = (
        sets.Item("known.png", address + "known.png", KNOWN),
        sets.Item("prefix.pth", address + "prefix.pth", KNOWN[:8]),
        sets.Item("unknown.png", address + "unknown.png"),
    )
    monkeypatch.setitem(sets.COLLECTIONS, "set5", sets.Collection("set5", "a set", "here", "none", items))
    for item in items:
        pages[item.name] = (200, BODY, len(BODY))
    return pages


def test_fetch_and_verify(run: Run, small_set: dict[str, tuple[int, bytes, int]], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "set"
    code, out, err = run("data", "fetch", "set5", "--to", folder)
    assert (code, err) == (0, "")
    assert "known.png: ok" in out
    assert f"unknown.png: not verified, no sha256 is known; got {KNOWN}" in out
    assert sorted(path.name for path in folder.iterdir()) == ["known.png", "prefix.pth", "unknown.png"]

    code, out, err = run("data", "verify", "set5", "--in", folder)
    assert code == 2  # one has no known digest: not verified is not passed
    assert "prefix.pth: ok" in out
    assert "got 2 (1 not verified" in err

    (folder / "known.png").write_bytes(BODY[:-1])
    (folder / "prefix.pth").unlink()
    code, out, err = run("data", "verify", "set5", "--in", folder)
    assert code == 2
    assert "known.png: differs" in out
    assert "prefix.pth: missing" in out
    run("data", "fetch", "set5", "--to", folder)
    assert (folder / "known.png").read_bytes() == BODY


@pytest.mark.parametrize(
    ("name", "page", "words"),
    [
        ("known.png", (200, BODY[:-1] + b"x", len(BODY)), "nothing was kept"),
        ("prefix.pth", (200, BODY[:-1] + b"x", len(BODY)), f"{KNOWN[:8]}..."),
        ("unknown.png", (200, b"<html>", 6), "expected a PNG"),
        ("unknown.png", (200, BODY[:100], len(BODY)), "100 of"),
        ("known.png", (404, b"", 0), "404"),
    ],
)
def test_a_bad_download_leaves_nothing(
    run: Run,
    small_set: dict[str, tuple[int, bytes, int]],
    tmp_path: Path,
    name: str,
    page: tuple[int, bytes, int],
    words: str,
) -> None:
    small_set[name] = page
    code, _, err = run("data", "fetch", "set5", "--to", tmp_path / "set")
    assert code == InputError.exit_code
    assert words in err
    assert err.count("\n") == 1
    left = {path.name for path in (tmp_path / "set").iterdir()}
    assert left <= {"known.png", "prefix.pth", "unknown.png"} - {name}


def test_a_closed_network_gives_address_and_digest(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A port on which nothing listens.
    item = sets.Item("file.pth", "http://127.0.0.1:9/file.pth", "dcbb9e9d")
    monkeypatch.setitem(sets.COLLECTIONS, "vgg19", sets.Collection("vgg19", "weights", "there", "some", (item,)))
    code, out, err = run("data", "fetch", "vgg19", "--to", tmp_path)
    assert (code, out) == (2, "")
    assert item.url in err
    assert "dcbb9e9d" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_list_and_what_it_promises(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, out, _ = run("data", "list")
    assert code == 0
    for name, collection in sets.COLLECTIONS.items():
        assert f"{name}: " in out
        assert collection.licence in out
        assert collection.items[0].url in out
        assert len({item.name for item in collection.items}) == len(collection.items)
        assert all(re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{8}|", item.sha256) for item in collection.items)
    assert [len(sets.COLLECTIONS[name].items) for name in ("set5", "set14", "bsd100", "vgg19")] == [5, 14, 100, 1]
    code, _, err = run("data", "fetch", "set6")
    assert code == 2
    assert "set5, set14, bsd100, vgg19" in err


def test_set5_is_the_one_that_was_measured(shared_data: Path) -> None:
    folder = shared_data / "Set5"
    if not folder.is_dir():
        pytest.skip(f"no Set5 in {shared_data}")
    assert {sets.state(item, folder) for item in sets.COLLECTIONS["set5"].items} == {"ok"}


def test_text_into_a_pipe_or_through_a_link(tmp_path: Path) -> None:
    """What is there is written to, never replaced by a file: as root, a device could be."""
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "scores")
    reader.join(timeout=10)
    assert got == ["scores"]
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "more")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "more"
