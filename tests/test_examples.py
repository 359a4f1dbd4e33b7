"""The examples of embedding run as they are, where their parts are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT

EXAMPLES = ROOT / "examples" / "embed"
COUNT, SIZE = 5, (32, 48)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames of 48x32: a bright square on a dark ground, which goes to the right."""
    path = tmp_path_factory.mktemp("clip") / "in.mp4"
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for i in range(COUNT):
            frame = np.full((*SIZE, 3), 40, np.uint8)
            frame[8:24, 4 * i : 4 * i + 16] = 220
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def example(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run an example with this environment's commands; it has to end well."""
    program = {".py": [sys.executable], ".sh": ["sh"], ".vpy": ["vspipe"]}[Path(name).suffix]
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [*program, str(EXAMPLES / name), *map(str, arguments)]
    environment = {**os.environ, "PATH": paths, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done


def check(path: Path) -> None:
    """Four times larger, each frame there, the square where it was."""
    with av.open(path) as video:
        frames = [frame.to_ndarray(format="gray") for frame in video.decode(video=0)]
    assert len(frames) == COUNT
    for i, frame in enumerate(frames):
        assert frame.shape == (4 * SIZE[0], 4 * SIZE[1])
        inside = frame[48:80, 16 * i + 16 : 16 * i + 48].mean()
        assert inside > frame[104:].mean() + 60


def test_pyav(clip: Path, tmp_path: Path) -> None:
    example("with_pyav.py", clip, tmp_path / "out.mp4", "srresnet_x4_small")
    check(tmp_path / "out.mp4")


def test_opencv(clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
    example("with_opencv.py", clip, tmp_path / "out.mp4", "srresnet_x4_small")
    check(tmp_path / "out.mp4")


def test_asyncio(tiny: Path) -> None:
    said = example("with_asyncio.py", tiny).stdout.decode().splitlines()
    assert sorted(said) == [f"camera {number}: 640x480" for number in (1, 2) for _ in range(5)]


def test_ffmpeg(clip: Path, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("the command ffmpeg is not installed")
    example("with_ffmpeg.sh", clip, tmp_path / "out.mkv", "--model", "srresnet_x4_small")
    check(tmp_path / "out.mkv")


def test_vapoursynth(tiny: Path) -> None:
    pytest.importorskip("vapoursynth", reason="VapourSynth is not installed; it needs Python 3.12 or later")
    got = example("with_vapoursynth.vpy", "-", "-c", "y4m", SRGAN_FAST_MODEL=str(tiny)).stdout
    assert got.startswith(b"YUV4MPEG2 C420")
    assert b" W256 H192 " in got
    assert got.count(b"FRAME") == 5
