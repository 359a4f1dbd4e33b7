"""Sizes of frames as a user types them."""

from __future__ import annotations

import re

from srgan_fast.errors import UsageError


def parse_size(option: str, text: str) -> tuple[int, int]:
    """Width and height out of a text like 480x270.

    Raises:  UsageError that names the option
    """
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text.strip())
    if not match:
        raise UsageError(f"expected {option} like 480x270, got {text!r}; give width x height in pixels")
    return int(match[1]), int(match[2])
