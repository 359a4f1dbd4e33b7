"""In which order a rater sees the pictures, and under which addresses: by lot, for each rater another."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from srgan_fast.evaluate.mos.study import Phase, Stimulus, Study


@dataclass(frozen=True)
class Showing:
    """A picture at its place in a rater's order, and the address under which this rater alone finds it there."""

    position: int
    stimulus: Stimulus
    repeat: int
    address: str


def showings(study: Study, rater: str) -> list[Showing]:
    """Everything that a rater sees, first to last: the calibration, then the test.

    Never the same image twice in a row. A repeated picture comes once in each half of the test, as far as that rule
    lets it. The order depends on the study's seed and the rater alone, so it is the same after a restart.
    """
    found: list[Showing] = []
    for phase in ("calibration", "test"):
        for stimulus, repeat in _apart(_shuffled(study, rater, phase)):
            position = len(found)
            found.append(Showing(position, stimulus, repeat, study.keyed("picture", rater, position)))
    return found


def can_be_apart(counts: Sequence[int]) -> bool:
    """Whether things of which there are so many each can stand so that none follows its own kind."""
    return max(counts, default=0) <= (sum(counts) + 1) // 2


def _shuffled(study: Study, rater: str, phase: Phase) -> list[tuple[Stimulus, int]]:
    # Sorted by digests, not by `random`, whose sequences another Python may change in the middle of a study.
    def lot(stimulus: Stimulus, repeat: int) -> float:
        text = f"{study.seed}\n{rater}\n{stimulus.id}\n{repeat}"
        uniform = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
        return (repeat + uniform) / (1 + stimulus.repeats)

    chosen = study.test if phase == "test" else study.calibration
    entries = [(stimulus, repeat) for stimulus in chosen for repeat in range(1 + stimulus.repeats)]
    return sorted(entries, key=lambda entry: lot(*entry))


def _apart(entries: list[tuple[Stimulus, int]]) -> list[tuple[Stimulus, int]]:
    """The first entry that may come next, again and again.

    With r entries left, of which an image has more than r / 2, only that image may come next: otherwise it could not
    be kept apart later. Where `can_be_apart` holds at the start this never fails.
    """
    left = list(entries)
    counts = Counter(stimulus.image for stimulus, _ in left)
    ordered: list[tuple[Stimulus, int]] = []
    last = None
    while left:
        image, most = counts.most_common(1)[0]
        if most > len(left) // 2 and image != last:
            index = next(i for i, (stimulus, _) in enumerate(left) if stimulus.image == image)
        else:
            index = next(i for i, (stimulus, _) in enumerate(left) if stimulus.image != last)
        entry = left.pop(index)
        last = entry[0].image
        counts[last] -= 1
        ordered.append(entry)
    return ordered
