"""`srgan-fast evaluate` and `srgan-fast data`: pairing, results, report, digests, and what they say in trouble."""

from __future__ import annotations

import hashlib
import http.server
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srgan_fast import weights
from srgan_fast.errors import InputError, OutputError, ShapeError, UsageError
from srgan_fast.evaluate import sets
from srgan_fast.evaluate.benchmark import Choice, Comparison, evaluate, evaluate_all, pair
from srgan_fast.evaluate.metrics import score
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.outputs import write
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


# Several methods.


@pytest.fixture
def made(tmp_path: Path, hr_folder: Path) -> Path:
    """A folder as another program leaves it: its results, and something else beside them."""
    folder = tmp_path / "made"
    folder.mkdir()
    save(folder / "a_SRF_4_SRCNN.png", 32, 48)
    save(folder / "b.png", 44, 36)
    save(folder / "a_SRF_4_LR.png", 8, 12)
    return folder


def test_what_macos_leaves_beside_a_file_is_no_image(hr_folder: Path) -> None:
    (hr_folder / "._a.png").write_bytes(b"macOS metadata")
    assert [entry["name"] for entry in evaluate(hr_folder, method="nearest")["images"]] == ["a.png", "b.png"]


def test_several_methods_are_what_each_gives_alone(hr_folder: Path, tiny_x2: Path) -> None:
    choices = [Choice.parse("nearest"), Choice.parse(f"mine={tiny_x2}"), Choice(method="bicubic")]
    seen: list[tuple[str, str]] = []
    results = evaluate_all(hr_folder, choices, on_image=lambda found: seen.append((found.name, found.method)))
    assert [result["method"] for result in results] == ["nearest", "mine", "bicubic"]
    assert {result["scale"] for result in results} == {2}  # the network's
    assert seen == [(name, method) for name in ("a.png", "b.png") for method in ("nearest", "mine", "bicubic")]
    assert results[0] == evaluate(hr_folder, method="nearest", scale=2)
    assert {**results[1], "method": "tiny_x2"} == evaluate(hr_folder, weights=tiny_x2)
    network = results[1]["network"]
    assert (network["architecture"], network["blocks"]) == ("srresnet", 2)
    assert network["parameters"] == sum(value.numel() for value in weights.load(tiny_x2).network.parameters())


def test_pictures_made_by_others(hr_folder: Path, made: Path) -> None:
    (result,) = evaluate_all(hr_folder, [Choice.parse(f"SRCNN={made}")])
    assert (result["method"], result["precision"], result["other_images"]) == ("SRCNN", "8 bits", 1)
    for name, file, entry in zip(("a", "b"), ("a_SRF_4_SRCNN", "b"), result["images"], strict=True):
        hr, sr = (
            torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
            for path in (hr_folder / f"{name}.png", made / f"{file}.png")
        )
        found = score(hr[:, : sr.shape[1], : sr.shape[2]].contiguous(), sr, "y601", 4)
        assert entry["scores"]["y601"] == {"psnr_db": found.psnr_db, "ssim": found.ssim}
    save(made / "b.png", 45, 36)
    with pytest.raises(InputError, match=r"expected 36x44 pixels in .*b\.png.*got 36x45"):
        evaluate_all(hr_folder, [Choice.parse(f"SRCNN={made}")])
    with pytest.raises(UsageError, match=r"HR without ESPCN: a\.png"):
        evaluate_all(hr_folder, [Choice.parse(f"ESPCN={made}")])


@pytest.mark.parametrize("text", ["lanczos", "=x", "mine=", " =x", "srresnet_x9"])
def test_a_method_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected bicubic, nearest, srresnet_x4.*NAME=PATH"):
        Choice.parse(text)


def test_methods_that_do_not_go_together(hr_folder: Path, made: Path, tiny_x2: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one"):
        evaluate_all(hr_folder, [])
    with pytest.raises(UsageError, match="bicubic twice"):
        evaluate_all(hr_folder, [Choice(method="bicubic"), Choice(method="bicubic")])
    with pytest.raises(UsageError, match="of one scale, got 2, 4"):
        evaluate_all(hr_folder, [Choice(weights=tiny_x2), Choice(model="srresnet_x4_small")])
    for name in ("HR", "bicubic"):
        with pytest.raises(UsageError, match="name of its own"):
            evaluate_all(hr_folder, [Choice(folder=hr_folder, name=name)])
    # Two networks of one name are told apart by their digests, the same network twice is not.
    torch.manual_seed(4)
    other = tmp_path / "other.safetensors"
    weights.save(other, Generator(GeneratorConfig(scale=2, blocks=1, width=8)).eval(), name="tiny_x2", recipe={})
    labels = [r["method"] for r in evaluate_all(hr_folder, [Choice(weights=tiny_x2), Choice(weights=other)])]
    assert labels == [f"tiny_x2 ({weights.load(path).info.digest[:8]})" for path in (tiny_x2, other)]
    with pytest.raises(UsageError, match="twice"):
        evaluate_all(hr_folder, [Choice(weights=tiny_x2), Choice(weights=tiny_x2)])


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


def test_json_to_stdout_is_only_json(run: Run, hr_folder: Path) -> None:
    code, out, _ = run("evaluate", hr_folder, "--method", "nearest", "--json", "-")
    assert code == 0
    assert json.loads(out)["method"] == "nearest"
    code, out, _ = run("evaluate", hr_folder, "--method", "nearest", "--method", "bicubic", "--json", "-")
    assert code == 0
    assert [result["method"] for result in json.loads(out)] == ["nearest", "bicubic"]


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_no_place_for_the_result(run: Run, hr_folder: Path, tmp_path: Path, option: str) -> None:
    for target in (tmp_path / "absent" / "file", hr_folder):
        code, out, err = run("evaluate", hr_folder, "--method", "bicubic", option, target)
        assert code == OutputError.exit_code
        assert out == ""
        assert err.startswith(f"srgan-fast: expected {option} to name a file in a folder that can be written")
        assert err.count("\n") == 1


def test_names_are_shown_as_they_are(run: Run, hr_folder: Path, tiny_x2: Path) -> None:
    (hr_folder / "b.png").rename(hr_folder / "b[red].png")
    code, out, err = run("evaluate", hr_folder, "--method", f"mine[/b]={tiny_x2}")
    assert (code, "mine[/b] x2, fp32" in out, "b[red].png" in out) == (0, True, True), err


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


def test_a_user_without_a_home(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    code, _, err = run("data", "verify", "set5")
    assert (code, err.count("\n"), "XDG_CACHE_HOME" in err) == (2, 1, True)
    assert run("data", "verify", "set5", "--in", tmp_path)[0] == 2


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
    write(tmp_path / "pipe", "scores")
    reader.join(timeout=10)
    assert got == ["scores"]
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "more")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "more"
