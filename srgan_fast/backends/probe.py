"""The two answers of a backend that is asked whether it can run here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ok:
    """The backend can run here."""


@dataclass(frozen=True)
class Unavailable:
    """The backend cannot run here: the reason, and what the user can do about it."""

    reason: str
    fix: str
