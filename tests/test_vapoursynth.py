"""The VapourSynth filter, where VapourSynth is: it needs Python 3.12."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srgan_fast import Upscaler
from srgan_fast.errors import InputError

vs: Any = pytest.importorskip("vapoursynth", reason="VapourSynth is not installed; it needs Python 3.12 or later")
upscale = pytest.importorskip("srgan_fast.vapoursynth").upscale


def numbered(form: Any, width: int = 19, height: int = 14) -> Any:
    """Ten frames that differ, each known by its number."""
    clip = vs.core.std.BlankClip(format=form, width=width, height=height, length=10, fpsnum=30000, fpsden=1001)

    def draw(n: int, f: Any) -> Any:
        frame = f.copy()
        for plane in range(3):
            view = np.asarray(frame[plane])
            values = np.random.default_rng(10 * (n // 2) + plane).random(view.shape)
            np.copyto(
                view, values if view.dtype.kind == "f" else (values * np.iinfo(view.dtype).max).astype(view.dtype)
            )
        frame.props["number"] = n
        return frame

    return vs.core.std.ModifyFrame(clip, clip, draw)


@pytest.mark.parametrize("name", ["RGB24", "RGB48", "RGBS"])
def test_frames_are_those_of_the_upscaler(tiny: Path, name: str) -> None:
    upscaler = Upscaler(tiny, backend="eager", device="cpu", precision="fp32")
    clip = numbered(getattr(vs, name))
    larger = upscale(clip, upscaler)
    assert (larger.width, larger.height, len(larger), larger.fps) == (76, 56, 10, clip.fps)
    for n in (3, 0, 7, 1, 9):
        source, result = clip.get_frame(n), larger.get_frame(n)
        lr = np.stack([np.asarray(source[plane]) for plane in range(3)])
        want = upscaler(lr, layout="CHW")
        assert np.array_equal(np.stack([np.asarray(result[plane]) for plane in range(3)]), want)
        assert result.props["number"] == n
        assert result.props["_DurationNum"] == source.props["_DurationNum"]
    assert len(list(larger.frames(prefetch=4))) == 10


def test_what_is_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match="got YUV420P8; convert"):
        upscale(vs.core.std.BlankClip(format=vs.YUV420P8), tiny)
    with pytest.raises(InputError, match="got both"):
        upscale(numbered(vs.RGB24), Upscaler(tiny), device="cpu")
    sizes = [vs.core.std.BlankClip(format=vs.RGB24, width=width) for width in (8, 9)]
    mixed = vs.core.std.Splice(sizes, mismatch=True)
    with pytest.raises(InputError, match="got a clip whose frames differ"):
        upscale(mixed)
