"""The folder of a study: which pictures are rated, how they were made, and proof that they are still the same."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from srgan_fast.errors import InputError, UsageError

FORMAT = "srgan-fast mos study 1"
STUDY_FILE = "study.json"
RATINGS_FILE = "ratings.sqlite"
REFERENCE = "HR"

Phase = Literal["calibration", "test"]


@dataclass(frozen=True)
class Method:
    """What made the pictures of one name, and out of what: a file's or the pictures' sha256 where there is one."""

    name: str
    made_by: str
    sha256: str | None = None


@dataclass(frozen=True)
class Stimulus:
    """One picture to rate; its id is drawn by lot and names its file.

    `expected` is the score that a picture of the calibration is an example of; `repeats` says how many times a rater
    sees it after the first.
    """

    id: str
    phase: Phase
    image: str
    method: str
    width: int
    height: int
    sha256: str
    repeats: int = 0
    expected: int | None = None


@dataclass(frozen=True)
class Study:
    """A study as it was prepared. `digest` is the sha256 of its file; orders follow from `seed`, addresses from
    `secret`.
    """

    folder: Path
    digest: str
    seed: int
    secret: str
    scale: int
    methods: tuple[Method, ...]
    images: tuple[str, ...]
    stimuli: tuple[Stimulus, ...]

    @cached_property
    def test(self) -> tuple[Stimulus, ...]:
        """The stimuli that count."""
        return tuple(stimulus for stimulus in self.stimuli if stimulus.phase == "test")

    @cached_property
    def calibration(self) -> tuple[Stimulus, ...]:
        """The examples that a rater sees before."""
        return tuple(stimulus for stimulus in self.stimuli if stimulus.phase == "calibration")

    @property
    def ratings_a_rater(self) -> int:
        """How many ratings of a rater count, the repeated ones among them."""
        return sum(1 + stimulus.repeats for stimulus in self.test)

    @property
    def ratings_file(self) -> Path:
        """Where the ratings are kept."""
        return self.folder / RATINGS_FILE

    def path(self, stimulus: Stimulus) -> Path:
        """The file of a stimulus."""
        return self.folder / "stimuli" / f"{stimulus.id}.png"

    def keyed(self, *words: object) -> str:
        """32 hexadecimal digits that nobody can guess who does not have the study: an address or a password."""
        text = "\n".join(map(str, words))
        return hmac.new(bytes.fromhex(self.secret), text.encode(), hashlib.sha256).hexdigest()[:32]

    def as_json(self) -> bytes:
        """What `study.json` holds."""
        plain: dict[str, Any] = {"format": FORMAT, "seed": self.seed, "secret": self.secret, "scale": self.scale}
        plain["methods"] = [asdict(method) for method in self.methods]
        plain["images"] = list(self.images)
        plain["stimuli"] = [asdict(stimulus) for stimulus in self.stimuli]
        return (json.dumps(plain, indent=1) + "\n").encode()

    def verify(self) -> None:
        """Compare every picture with its digest.

        Raises:  InputError for the first that is missing or has changed
        """
        for stimulus in self.stimuli:
            path = self.path(stimulus)
            try:
                found = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise InputError(
                    f"expected the picture {path}, got: {error.strerror}; prepare the study anew"
                ) from None
            if found != stimulus.sha256:
                raise InputError(
                    f"expected {path} with sha256 {stimulus.sha256[:12]}..., got {found[:12]}...; "
                    "it has changed since the study was prepared: prepare it anew"
                )


def load(folder: Path) -> Study:
    """Read a study.

    Raises:  InputError if the folder holds none, or a damaged one
    """
    path = folder / STUDY_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"expected a study in {folder}, got: {error.strerror}: {path.name}; make one with `srgan-fast mos prepare`"
        ) from None
    try:
        plain = json.loads(content)
        if plain["format"] != FORMAT:
            raise ValueError(f"format {plain['format']!r}")
        bytes.fromhex(plain["secret"])
        return Study(
            folder=folder,
            digest=hashlib.sha256(content).hexdigest(),
            seed=int(plain["seed"]),
            secret=plain["secret"],
            scale=int(plain["scale"]),
            methods=tuple(Method(**entry) for entry in plain["methods"]),
            images=tuple(plain["images"]),
            stimuli=tuple(_stimulus(entry) for entry in plain["stimuli"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"expected {path} as `srgan-fast mos prepare` writes it, got another or a damaged file "
            f"({str(error)[:100]}); prepare the study anew"
        ) from None


def _stimulus(entry: dict[str, Any]) -> Stimulus:
    stimulus = Stimulus(**entry)
    if not (len(stimulus.id) == 32 and set(stimulus.id) <= set("0123456789abcdef")):
        raise ValueError(f"id {stimulus.id!r}")  # it names a file
    return stimulus


def check_name(name: str) -> str:
    """A method's name, if it can be one.

    Raises:  UsageError
    """
    if not name or not name.isprintable() or len(name) > 60:
        raise UsageError(f"expected a name of 1 to 60 printable characters for a method, got {name!r}; give another")
    if name.upper() == REFERENCE:
        raise UsageError(f"expected a method's name, got {name}, which is that of the hidden reference; give another")
    return name
