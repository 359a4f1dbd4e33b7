"""Frames that come and go in an asyncio program, here two cameras at once: python with_asyncio.py [MODEL]

Each camera has a stream of its own, which remembers its last frame; the event loop stays free while frames are made.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np

from srgan_fast import Upscaler


async def camera(number: int, count: int = 5) -> AsyncIterator[np.ndarray]:
    """A square that moves over a still picture."""
    scene = np.random.default_rng(number).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    for i in range(count):
        await asyncio.sleep(0.01)
        frame = scene.copy()
        frame[10 * i : 10 * i + 16, 20:36] = 255
        yield frame


async def watch(number: int, upscaler: Upscaler) -> None:
    async with aclosing(upscaler.astream(camera(number))) as results:
        async for frame in results:
            print(f"camera {number}: {frame.shape[1]}x{frame.shape[0]}", flush=True)


async def main() -> None:
    upscaler = Upscaler(*sys.argv[1:])
    await asyncio.gather(watch(1, upscaler), watch(2, upscaler))


asyncio.run(main())
