"""`srgan-fast upscale`: files and folders, resumed, refused, interrupted; every mistake one line and an exit code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line
from PIL import Image

from srgan_fast import image
from srgan_fast.errors import MemoryBudgetError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run, tiny: Path) -> Run:
    """`srgan-fast upscale`, with the small network unless the test names one."""

    def upscale(*arguments: object) -> tuple[int, str, str]:
        named = {"--weights", "--model"} & {str(argument) for argument in arguments}
        return run("upscale", *arguments, *(() if named else ("--weights", tiny)))

    return upscale


def save(path: Path, height: int = 9, width: int = 7, channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, channels), dtype=np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("height", "width"), [(9, 7), (3, 8), (1, 1), (3, 3)])
def test_one_image(run: Run, tmp_path: Path, height: int, width: int) -> None:
    source = save(tmp_path / "in.png", height, width)
    code, out, err = run(source, tmp_path / "out.png", "--scale", 4, "--backend", "eager")
    assert code == 0, err
    assert image.read(tmp_path / "out.png").rgb.shape == (4 * height, 4 * width, 3)
    for word in ("1 upscaled", "x4", "eager", " s ", str(tmp_path / "out.png")):
        assert word in out
    assert err == ""


def test_kinds_of_pictures(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "alpha.png", channels=4)
    save(tmp_path / "grey.png", channels=1)
    image.write(tmp_path / "deep.png", image.Picture(np.full((5, 4, 3), 40000, np.uint16)))
    for name in ("alpha", "grey", "deep"):
        assert run(tmp_path / f"{name}.png", tmp_path / f"{name}_sr.tif")[0] == 0
        before, after = image.read(tmp_path / f"{name}.png"), image.read(tmp_path / f"{name}_sr.tif")
        assert (after.grey, after.rgb.dtype, after.alpha is None) == (
            before.grey,
            before.rgb.dtype,
            before.alpha is None,
        )
    one_line(run(tmp_path / "alpha.png", tmp_path / "a.jpg"), 2, "cannot hold this picture's transparency")
    one_line(run(tmp_path / "deep.png", tmp_path / "a.jpg"), 2, "16 bits")


def test_into_a_folder_and_with_another_format(run: Run, tmp_path: Path) -> None:
    source, folder = save(tmp_path / "in.png"), tmp_path / "out"
    folder.mkdir()
    assert run(source, folder)[0] == 0
    assert run(source, folder, "--format", "tiff")[0] == 0
    assert files(folder) == ["in.png", "in.tiff"]
    one_line(
        run(source, tmp_path / "a.png", "--format", "jpg"), 2, "expected --format and the output's suffix to agree"
    )
    one_line(run(source, tmp_path / "a.png", "--format", "gif"), 2, "got gif")


def test_a_folder_is_mirrored_and_resumed(run: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "new" / "out"
    for name in ("a.png", "sub/b.png", "sub/deep/c.JPG"):
        save(source / name)
    (source / "notes.txt").write_text("not an image")
    (source / "._a.png").write_bytes(b"macOS metadata")
    code, out, err = run(source, target)
    assert (code, err) == (0, "")
    assert files(target) == ["a.png", "sub/b.png", "sub/deep/c.JPG"]
    assert "3 upscaled, 0 finished before, 0 failed" in out

    times = {name: (target / name).stat().st_mtime_ns for name in files(target)}
    code, out, _ = run(source, target)
    assert (code, "nothing to do: all 3" in out) == (0, True)
    (target / "a.png").unlink()
    later = time.time() + 60
    os.utime(source / "sub/b.png", (later, later))  # the input has changed since
    code, out, _ = run(source, target)
    assert (code, "2 upscaled, 1 finished before" in out) == (0, True)
    assert (target / "sub/deep/c.JPG").stat().st_mtime_ns == times["sub/deep/c.JPG"]
    assert "3 upscaled, 0 finished before" in run(source, target, "--overwrite")[1]


def test_the_output_inside_the_input(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for expected in ("1 upscaled, 0 finished", "nothing to do: all 1"):
        code, out, _ = run(tmp_path, tmp_path / "out")
        assert code == 0
        assert expected in out
    assert files(tmp_path) == ["a.png", "out/a.png"]


def test_bad_pictures_do_not_stop_the_others(run: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    good = save(source / "b.png")
    (source / "a.png").write_bytes(good.read_bytes()[:60])
    (source / "c.png").touch()
    save(source / "d.png")
    code, out, err = run(source, target)
    assert code == 2
    assert files(target) == ["b.png", "d.png"]
    assert "2 upscaled, 0 finished before, 2 failed" in out
    lines = err.splitlines()
    assert len(lines) == 3
    assert "a.png" in lines[0]
    assert "empty file" in lines[1]
    assert "2 of 4 images failed, the others are done" in lines[2]
    # What failed is tried again.
    shutil.copy(good, source / "a.png")
    assert "1 upscaled, 2 finished before, 1 failed" in run(source, target)[1]


def test_damaged_tiff_is_one_line(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(source, compression="tiff_lzw")
    data = bytearray(source.read_bytes())
    data[8:400] = bytes(392)
    source.write_bytes(data)
    one_line(run(source, tmp_path / "b.png"), 2, "damaged")


def test_a_link_that_leads_to_itself(run: Run, tmp_path: Path) -> None:
    link = tmp_path / "in" / "a.png"
    link.parent.mkdir()
    link.symlink_to(link.name)
    one_line(run(link, tmp_path / "b.png"), 2, "a.png")
    one_line(run(link, tmp_path / "b.mp4"), 2, "a.png")
    code, out, err = run(link.parent, tmp_path / "out")
    assert (code, "0 upscaled, 0 finished before, 1 failed" in out) == (2, True), err


def test_a_budget_that_holds_no_picture_has_its_own_exit_code(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.png")
    assert run(tmp_path / "in", tmp_path / "out", "--memory", "1K")[0] == MemoryBudgetError.exit_code
    (tmp_path / "in" / "b.png").write_bytes(b"")
    assert run(tmp_path / "in", tmp_path / "out", "--memory", "1K")[0] == 2


def test_two_inputs_for_one_output_are_refused(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "a.jpg")
    one_line(run(tmp_path / "in", tmp_path / "out", "--format", "png"), 2, "would both become")
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "in", tmp_path / "out")[0] == 0


def test_inputs_are_never_overwritten(run: Run, tmp_path: Path) -> None:
    source = save(tmp_path / "in" / "a.png")
    before = source.read_bytes()
    (tmp_path / "link.png").symlink_to(source)
    os.link(source, tmp_path / "hard.png")
    for one, other in (
        (source, source),
        (source, tmp_path / "link.png"),
        (source, tmp_path / "hard.png"),
        (source, source.parent),
        (source.parent, source.parent),
    ):
        one_line(run(one, other), 2, "the input and the output are the same")
    # in/in/a.png would become in/a.png.
    save(tmp_path / "in" / "in" / "a.png")
    one_line(run(tmp_path / "in", tmp_path, "--overwrite"), 2, "would be overwritten")
    assert source.read_bytes() == before


def test_mistakes_are_one_line(run: Run, tmp_path: Path, tiny: Path) -> None:
    source = save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    out = tmp_path / "out.png"
    one_line(run(tmp_path / "missing.png", out), 2, "does not exist")
    one_line(run(tmp_path / "empty", tmp_path / "out"), 2, "expected images")
    one_line(run(source, tmp_path / "missing" / "out.png"), 4, "make it first")
    one_line(run(source, tmp_path / "out.gif"), 2, "got the image a.png; write an image")
    one_line(run(source, tmp_path / "out"), 2, "expected an output of")
    one_line(run(tmp_path / "clip.mp4", out), 2, "does not exist")
    (tmp_path / "clip.mp4").touch()
    one_line(run(tmp_path / "clip.mp4", out), 2, "expected an output of .mp4")
    one_line(run(tmp_path / "clip.mp4", tmp_path / "out.mp4"), 2, "empty file")
    one_line(run(tmp_path / "empty", source), 2, "so the output must be one too")
    one_line(run(tmp_path, source / "out"), 4, "cannot make the folder")
    one_line(run(source, out, "--scale", 2), 2, "expected a model of scale 2")
    one_line(run(source, out, "--model", "x", "--weights", tiny), 2, "expected --model or --weights, got both")
    one_line(run(source, out, "--weights", tmp_path / "no.safetensors"), 5, "no.safetensors")
    one_line(run(source, out, "--memory", "much"), 2, "expected a memory budget")
    one_line(run(source, out, "--device", "abacus"), 2, "expected a device")
    assert run(source, out, "--model", "unknown")[0] in (2, 5)
    assert run(source, out, "--backend", "unknown")[0] in (2, 3)
    assert not out.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission(run: Run, tmp_path: Path) -> None:
    source, folder = save(tmp_path / "a.png"), tmp_path / "out"
    folder.mkdir(mode=0o500)
    one_line(run(source, folder / "a.png"), 4, "no permission")


def test_a_full_disk_stops_a_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.png")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    one_line(run(tmp_path / "in", tmp_path / "out"), 4, "No space left on device")
    assert files(tmp_path / "out") == []


def test_ctrl_c_keeps_what_is_finished(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / "in" / name)
    fsync, calls = os.fsync, []

    def interrupt_second(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupt_second)
    one_line(run(tmp_path / "in", tmp_path / "out"), 130, "stopped; 1 finished")
    assert files(tmp_path / "out") == ["a.png"]
    assert "2 upscaled, 1 finished before" in run(tmp_path / "in", tmp_path / "out")[1]


def test_a_real_ctrl_c(tmp_path: Path, tiny: Path) -> None:
    for index in range(400):
        save(tmp_path / "in" / f"{index:03}.png", 32, 32)
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from srgan_fast.cli import main; main()", "upscale"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "in"), str(out), "--weights", str(tiny)], stderr=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and not (out.is_dir() and any(out.glob("*.png"))):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.count("\n") == 1
    assert "stopped;" in err
    written = files(out)
    assert 0 < len(written) < 400
    assert all(image.read(out / name).rgb.shape == (128, 128, 3) for name in written)


def test_a_folder_does_not_become_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "a.png")
    code, _, err = run(tmp_path / "in", tmp_path / "out.png")
    assert code == 2
    assert "must be one too" in err
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("scale", [0, -4])
def test_a_scale_that_is_none(run: Run, tmp_path: Path, scale: int) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    code, _, err = run(tmp_path / "a.png", tmp_path / "b.png", "--scale", scale)
    assert (code, err.count("\n")) == (2, 1)
    assert "2 or more" in err


def test_a_device_is_said_once(run: Run, tmp_path: Path) -> None:
    code, _, err = run("/dev/zero", tmp_path / "b.png")
    assert code == 2
    assert err.count("/dev/zero") == 1
