"""Ratings in SQLite: each in a transaction of its own, on the disk before its rater is thanked for it."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from srgan_fast.errors import InputError, OutputError
from srgan_fast.evaluate.mos.order import Showing
from srgan_fast.evaluate.mos.study import Study

Origin = Literal["browser", "simulated"]

_APPLICATION = 0x73724D4F  # in the file's header, by which `file` and we tell it from other databases
_BUSY_S = 10.0
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE study (digest TEXT NOT NULL);
INSERT INTO study VALUES ('{{digest}}');
CREATE TABLE raters (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE,
  origin TEXT NOT NULL CHECK (origin IN ('browser', 'simulated')),
  joined_utc TEXT NOT NULL
);
CREATE TABLE ratings (
  rater INTEGER NOT NULL REFERENCES raters (id),
  position INTEGER NOT NULL CHECK (position >= 0),
  stimulus TEXT NOT NULL,
  repeat INTEGER NOT NULL,
  phase TEXT NOT NULL CHECK (phase IN ('calibration', 'test')),
  score INTEGER NOT NULL CHECK (score IN (1, 2, 3, 4, 5)),
  changes INTEGER NOT NULL DEFAULT 0,
  elapsed_ms INTEGER NOT NULL,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  ratio REAL NOT NULL,
  zoom REAL NOT NULL,
  fits INTEGER NOT NULL CHECK (fits IN (0, 1)),
  rated_utc TEXT NOT NULL,
  PRIMARY KEY (rater, position)
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
COMMIT;
"""


@dataclass(frozen=True)
class Rater:
    """Someone who rates. `key` is the sha256 of a token that only the rater's browser has; orders follow from it."""

    id: int
    key: str
    origin: Origin


@dataclass(frozen=True)
class Circumstances:
    """How a picture was seen: for how long; the window in CSS pixels; device pixels to a CSS pixel, and the zoom by
    fingers on top of it; whether all of the picture was in sight.
    """

    elapsed_ms: int
    width: int
    height: int
    ratio: float
    zoom: float
    fits: bool


@dataclass(frozen=True)
class Rating:
    """One rating of the test. `rater` is the first part of the rater's key."""

    rater: str
    origin: Origin
    position: int
    stimulus: str
    repeat: int
    score: int
    changes: int
    circumstances: Circumstances
    rated_utc: str


class OutOfTurn(Exception):
    """A rating of a picture that this rater has not come to yet."""


class Store:
    """The ratings of a study. Calls may come from several threads, and several processes may have it open.

    Raises:  InputError if the file is no such database, is damaged, or is another study's; OutputError if it cannot be
             made
    """

    def __init__(self, path: Path, study: Study, *, create: bool = True) -> None:
        self._path, self._lock = path, threading.Lock()
        if not create and not path.exists():
            raise InputError(f"expected ratings in {path}, got none yet; collect some with `srgan-fast mos serve`")
        try:
            if create:
                path.touch(mode=0o600)
            # Transactions begin and end where this file says so, not where the module guesses.
            self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"cannot open {path}: {error}; make room or check its permissions") from error
        try:
            self._set_up(study)
        except sqlite3.Error as error:
            self._connection.close()
            raise InputError(
                f"expected the ratings of a study in {path}, got a damaged or another file ({error}); "
                "move it away, or put a copy in its place"
            ) from error
        except InputError:
            self._connection.close()
            raise

    def _set_up(self, study: Study) -> None:
        run = self._connection.execute
        # A reader waits for nobody, and what was committed before a crash is found after it; FULL: of the machine too.
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run("PRAGMA foreign_keys = ON")
        if run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            try:
                self._connection.executescript(_SCHEMA.format(digest=study.digest))
            except sqlite3.OperationalError:
                if self._connection.in_transaction:
                    run("ROLLBACK")
                if run("PRAGMA application_id").fetchone()[0] != _APPLICATION:
                    raise  # not because another process was first
        if run("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise sqlite3.DatabaseError("no ratings of this program")
        found = run("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        if (study.digest,) not in run("SELECT digest FROM study").fetchall():
            raise InputError(
                f"expected the ratings of the study in {study.folder}, got another study's in {self._path}; "
                "put the study.json back that they belong to"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; everything in it is on the disk already."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        """What happens in the block happens as a whole, or not at all.

        Raises:  OutputError if it cannot be written, as on a full disk
        """
        with self._lock:
            cursor = self._connection.cursor()
            try:
                cursor.execute("BEGIN IMMEDIATE")
                yield cursor
                cursor.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise OutputError(f"cannot write {self._path}: {error}; make room") from error
                raise

    def join(self, origin: Origin = "browser") -> str:
        """Take a new rater in; the token by which to know them again is kept nowhere here."""
        token = secrets.token_hex(16)
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO raters (key, origin, joined_utc) VALUES (?, ?, ?)", (_key(token), origin, _now())
            )
        return token

    def rater(self, token: str) -> Rater | None:
        """Whose token it is."""
        with self._lock:
            query = "SELECT id, key, origin FROM raters WHERE key = ?"
            row = self._connection.execute(query, (_key(token),)).fetchone()
        return None if row is None else Rater(*row)

    def done(self, rater: Rater) -> int:
        """How many pictures a rater has rated, those of the calibration among them: the position of the next."""
        with self._lock:
            query = "SELECT count(*) FROM ratings WHERE rater = ?"
            return int(self._connection.execute(query, (rater.id,)).fetchone()[0])

    def score(self, rater: Rater, position: int) -> int | None:
        """What a rater said at a position."""
        with self._lock:
            query = "SELECT score FROM ratings WHERE rater = ? AND position = ?"
            row = self._connection.execute(query, (rater.id, position)).fetchone()
        return None if row is None else int(row[0])

    def rate(self, rater: Rater, showing: Showing, score: int, circumstances: Circumstances) -> None:
        """Keep a rating; one at the same position takes the place of the first, and is counted as a change.

        Raises:  OutOfTurn for a position that the rater has not reached; OutputError if it cannot be written
        """
        seen = circumstances
        with self._transaction() as cursor:
            query = "SELECT count(*) FROM ratings WHERE rater = ?"
            if showing.position > cursor.execute(query, (rater.id,)).fetchone()[0]:
                raise OutOfTurn(f"position {showing.position}")
            cursor.execute(
                """
                INSERT INTO ratings (rater, position, stimulus, repeat, phase, score,
                                     elapsed_ms, width, height, ratio, zoom, fits, rated_utc)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (rater, position) DO UPDATE SET
                  changes = changes + (score <> excluded.score), score = excluded.score,
                  elapsed_ms = excluded.elapsed_ms, width = excluded.width, height = excluded.height,
                  ratio = excluded.ratio, zoom = excluded.zoom, fits = excluded.fits, rated_utc = excluded.rated_utc
                """,
                (
                    *(rater.id, showing.position, showing.stimulus.id, showing.repeat, showing.stimulus.phase, score),
                    *(seen.elapsed_ms, seen.width, seen.height, seen.ratio, seen.zoom, seen.fits, _now()),
                ),
            )

    def ratings(self) -> list[Rating]:
        """All ratings of the test: raters as they joined, their ratings as they were given."""
        query = """
            SELECT substr(key, 1, 12), origin, position, stimulus, repeat, score, changes,
                   elapsed_ms, width, height, ratio, zoom, fits, rated_utc
            FROM ratings JOIN raters ON raters.id = ratings.rater
            WHERE phase = 'test' ORDER BY raters.id, position
            """
        with self._lock:
            rows = self._connection.execute(query).fetchall()
        found = []
        for row in rows:
            seen = Circumstances(*(*row[7:12], bool(row[12])))
            found.append(Rating(*(*row[:7], seen, row[13])))
        return found

    def count(self) -> tuple[int, int]:
        """How many raters have rated a picture of the test, and how many ratings of these there are."""
        query = "SELECT count(DISTINCT rater), count(*) FROM ratings WHERE phase = 'test'"
        with self._lock:
            raters, ratings = self._connection.execute(query).fetchone()
        return int(raters), int(ratings)


def _key(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
