"""y4m on pipes: every kind that is known, sizes of all parities, readers that leave, streams that end in the middle."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srgan_fast import Upscaler
from srgan_fast.cli import main
from srgan_fast.errors import InputError
from srgan_fast.video import y4m
from srgan_fast.video.colour import from_rgb, to_rgb

Run = Callable[..., tuple[int, str, str]]
# Of each kind: bits, and how much smaller its chroma is across and down; None for no chroma.
KINDS: dict[str, tuple[int, tuple[int, int] | None]] = {
    "420jpeg": (8, (2, 2)),
    "420mpeg2": (8, (2, 2)),
    "420paldv": (8, (2, 2)),
    "420": (8, (2, 2)),
    "422": (8, (2, 1)),
    "444": (8, (1, 1)),
    "mono": (8, None),
    "420p10": (10, (2, 2)),
    "422p10": (10, (2, 1)),
    "444p12": (12, (1, 1)),
    "420p16": (16, (2, 2)),
    "mono10": (10, None),
}


@pytest.fixture(scope="module")
def upscaler(tiny: Path) -> Upscaler:
    return Upscaler(tiny, backend="eager", device="cpu", precision="fp32")


def frame_of(kind: str, height: int, width: int, seed: int) -> bytes:
    bits, chroma = KINDS[kind]
    shapes = [(height, width)]
    if chroma is not None:
        shapes += [(-(-height // chroma[1]), -(-width // chroma[0]))] * 2
    rng = np.random.default_rng(seed)
    dtype = "<u1" if bits == 8 else "<u2"
    return b"".join(rng.integers(0, 1 << bits, shape).astype(dtype).tobytes() for shape in shapes)


def stream(kind: str, height: int, width: int, seeds: list[int], more: str = "F30000:1001 Ip A8:9") -> bytes:
    head = f"YUV4MPEG2 W{width} H{height} {more} C{kind} XYSCSS=X\n".encode()
    return head + b"".join(b"FRAME\n" + frame_of(kind, height, width, seed) for seed in seeds)


def upscale(data: bytes, upscaler: Upscaler, **choices: Any) -> tuple[bytes, y4m.Summary]:
    source, target = io.BytesIO(data), io.BytesIO()
    matrix = choices.pop("matrix", None)
    summary = y4m.upscale(source, target, y4m.read_header(source, matrix), upscaler, **choices)
    return target.getvalue(), summary


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(9, 13), (8, 6)])
def test_every_kind_and_odd_sizes(upscaler: Upscaler, kind: str, height: int, width: int) -> None:
    got, summary = upscale(stream(kind, height, width, [1, 1, 2]), upscaler)
    header = f"YUV4MPEG2 W{4 * width} H{4 * height} F30000:1001 Ip A8:9 C{kind} XYSCSS=X\n".encode()
    assert got.startswith(header)
    size = len(b"FRAME\n" + frame_of(kind, 4 * height, 4 * width, 0))
    assert len(got) == len(header) + 3 * size
    first, second, third = (got[len(header) + i * size :][:size] for i in range(3))
    assert first == second != third
    assert summary.frames == 3
    assert summary.saved == pytest.approx(1 / 3)
    # The same as a picture of the frame would give.
    again = y4m.read_header(io.BytesIO(header))
    source = io.BytesIO(stream(kind, height, width, [1]))
    small = y4m.read_header(source)
    (planes,) = y4m.read_frames(source, small)
    want = from_rgb(upscaler(to_rgb(planes, small.colour), layout="HWC"), again.colour)
    assert first == b"FRAME\n" + b"".join(plane.contiguous().numpy().tobytes() for plane in want)


def test_what_a_header_says() -> None:
    def colour(more: str, **choices: Any) -> Any:
        return y4m.read_header(io.BytesIO(f"YUV4MPEG2 W1280 H720 {more}\n".encode()), **choices).colour

    assert colour("C420mpeg2").siting == "left"
    assert colour("").siting == "centre"
    assert (colour("").subsampling, colour("").full, colour("").matrix) == ("420", False, "bt709")
    assert colour("XCOLORRANGE=FULL").full
    assert colour("", matrix="bt2020").matrix == "bt2020"


def test_notes_and_reuse(upscaler: Upscaler) -> None:
    data = stream("420jpeg", 130, 160, [1, 1, 1], more="F25:1 It")
    changed = bytearray(data)
    changed[-130 * 160 * 3 // 2 + 200] ^= 0xFF  # one value of the last frame's luma
    on, summary = upscale(bytes(changed), upscaler)
    off, plain = upscale(bytes(changed), upscaler, reuse="off")
    assert on == off
    assert plain.saved == 0
    assert any("bt601 by the size" in note for note in summary.notes)
    assert any("interlaced" in note for note in summary.notes)
    assert not upscale(stream("mono", 8, 8, [1]), upscaler)[1].notes


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "got nothing"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "begins with YUV4MPEG2"),
        (b"YUV4MPEG2 W8 H8", "begins with YUV4MPEG2"),
        (b"YUV4MPEG2 W8\n", "W8 H"),
        (b"YUV4MPEG2 W0 H8\n", "W0 H8"),
        (b"YUV4MPEG2 W8 H99999999\n", "H99999999"),
        (b"YUV4MPEG2 Wx Hy\n", "Wx Hy"),
        (b"YUV4MPEG2 W8 H8 C444alpha\n", "got 444alpha"),
        (b"YUV4MPEG2 W8 H8 C420p9\n", "got 420p9"),
        (b"YUV4MPEG2 W8 H8\n", "expected frames"),
        (b"YUV4MPEG2 W8 H8\nFRAMES" + bytes(96), "begin with FRAME"),
        (b"YUV4MPEG2 W8 H8\nrubbish\n" + bytes(96), "begin with FRAME"),
        (stream("420", 8, 8, [1])[:-1], "frame 1 is cut off: expected 96 bytes, got 95"),
    ],
)
def test_what_is_refused(upscaler: Upscaler, data: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        upscale(data, upscaler)


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=200), cut=st.integers(0, 300))
def test_rubbish_is_an_input_error(data: bytes, cut: int) -> None:
    for broken in (data, b"YUV4MPEG2 " + data, stream("420", 8, 8, [1, 2])[:cut], stream("420", 8, 8, [1])[:60] + data):
        source = io.BytesIO(broken)
        with contextlib.suppress(InputError):
            for _ in y4m.read_frames(source, y4m.read_header(source)):
                pass


def test_frames_before_a_cut_are_written(upscaler: Upscaler) -> None:
    source, target = io.BytesIO(stream("444", 8, 8, [1, 2, 3])[:-7]), io.BytesIO()
    summary = y4m.Summary()
    with pytest.raises(InputError, match="frame 3 is cut off"):
        y4m.upscale(source, target, y4m.read_header(source), upscaler, summary=summary)
    assert summary.frames == 2
    assert target.getvalue().count(b"FRAME\n") == 2


def test_the_command_refuses_in_one_line(run: Run, monkeypatch: Any, tmp_path: Path, tiny: Path) -> None:
    def given(data: bytes, terminal: bool = False) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: terminal))

    good = stream("420", 8, 8, [1])
    for arguments, data, says in (
        (("-", tmp_path / "out.mkv"), good, "expected - and -"),
        (("-", "-", "--format", "png"), good, "--format"),
        (("-", "-", "--crf", 12), good, "--crf is for files"),
        (("-", "-", "--matrix", "bt123"), good, "bt123"),
        (("-", "-", "--reuse", "maybe"), good, "maybe"),
        (("-", "-", "--weights", tiny, "--scale", 2), good, "scale 2"),
        (("-", "-"), b"GIF89a", "YUV4MPEG2"),
    ):
        given(data)
        code, out, err = run("upscale", *arguments)
        assert (code, out) == (2, "")
        assert says in err
        assert err.count("\n") == 1
    given(good, terminal=True)
    assert "a terminal" in run("upscale", "-", "-")[2]


def test_a_cut_off_stream_by_the_command(
    monkeypatch: Any, capfdbinary: pytest.CaptureFixture[bytes], tiny: Path
) -> None:
    data = stream("420p10", 9, 15, [1, 2, 3])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data[:-1]), isatty=lambda: False))
    monkeypatch.setattr(sys, "argv", ["srgan-fast", "upscale", "-", "-", "--weights", str(tiny), "--backend", "eager"])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfdbinary.readouterr()
    assert stop.value.code == 2
    assert out == upscale(stream("420p10", 9, 15, [1, 2]), Upscaler(tiny, backend="eager"))[0]
    assert b"frame 3 is cut off" in err
    assert b"2 frames were written" in err


def test_a_pipe(tiny: Path, upscaler: Upscaler) -> None:
    """A stream through, and a reader that has seen enough."""
    command = [sys.executable, "-m", "srgan_fast", "upscale", "-", "-", "--weights", str(tiny)]
    command += ["--backend", "eager", "--precision", "fp32", "--device", "cpu", "--matrix", "bt709"]
    data = stream("420p10", 9, 15, [1, 2, 2, 3])
    done = subprocess.run(command, input=data, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == upscale(data, upscaler, matrix="bt709")[0]
    assert b"4 frames upscaled" in done.stderr
    assert b"25%" in done.stderr

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stream("444", 64, 64, [1]))
        process.stdin.flush()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"".join(b"FRAME\n" + frame_of("444", 64, 64, seed) for seed in range(9)))
            process.stdin.close()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(timeout=300) == 4
    assert b"whoever reads stdout left" in said
    assert said.count(b"\n") == 1
