"""Ratings on the disk: whole, each once, whoever writes at the same time and whatever ends the program."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from raters import SEEN, Client, simulate, small_study, wait_for

from srgan_fast.errors import InputError, OutputError
from srgan_fast.evaluate.mos.order import showings
from srgan_fast.evaluate.mos.store import OutOfTurn, Store
from srgan_fast.evaluate.mos.study import Study, load

KILLS = 20 if os.environ.get("SRGAN_FAST_SOAK") == "1" else 2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small_study(tmp_path_factory.mktemp("mos"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ratings.sqlite"


def test_ratings_come_back_as_they_were_given(prepared: Study, path: Path) -> None:
    with Store(path, prepared) as store:
        names = [
            simulate(prepared, store, lambda showing: 1 + showing.position % 5, "browser"),
            simulate(prepared, store, lambda _: 3),
        ]
        assert store.count() == (2, 2 * prepared.ratings_a_rater)
    with Store(path, prepared, create=False) as store:
        ratings = store.ratings()
    assert [rating.rater for rating in ratings] == [name for name in names for _ in range(prepared.ratings_a_rater)]
    assert {rating.origin for rating in ratings[: prepared.ratings_a_rater]} == {"browser"}
    assert {rating.origin for rating in ratings[prepared.ratings_a_rater :]} == {"simulated"}
    assert [rating.score for rating in ratings[:3]] == [1 + (4 + k) % 5 for k in range(3)]
    assert {rating.circumstances for rating in ratings} == {SEEN}
    assert {rating.changes for rating in ratings} == {0}
    examples = {stimulus.id for stimulus in prepared.calibration}
    assert not {rating.stimulus for rating in ratings} & examples


def test_the_file_is_in_wal_and_private_and_has_no_tokens(prepared: Study, path: Path) -> None:
    with Store(path, prepared) as store:
        token = store.join()
        assert store.rater(token) is not None
        assert store.rater("") is None
        assert store.rater(token[:-1]) is None
    assert path.stat().st_mode & 0o777 == 0o600
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert token.encode() not in path.read_bytes()


def test_a_rating_may_be_mended_but_none_skipped(prepared: Study, path: Path) -> None:
    with Store(path, prepared) as store:
        rater = store.rater(store.join())
        assert rater is not None
        order = showings(prepared, rater.key)
        with pytest.raises(OutOfTurn):
            store.rate(rater, order[1], 3, SEEN)
        for showing in order[:5]:
            store.rate(rater, showing, 2, SEEN)
        store.rate(rater, order[4], 2, SEEN)  # sent again, because the answer was lost
        assert store.done(rater) == 5
        assert store.ratings()[0].changes == 0
        store.rate(rater, order[4], 5, replace(SEEN, elapsed_ms=1))
        assert store.done(rater) == 5
        (kept,) = store.ratings()
        assert (kept.score, kept.changes, kept.circumstances.elapsed_ms) == (5, 1, 1)
        assert store.score(rater, 4) == 5
        assert store.score(rater, 5) is None


@pytest.mark.parametrize("score", [0, 6, None, "3; drop table ratings", 2.5])
def test_the_database_itself_refuses_what_is_no_score(prepared: Study, path: Path, score: object) -> None:
    with Store(path, prepared) as store:
        rater = store.rater(store.join())
        assert rater is not None
        with pytest.raises(sqlite3.IntegrityError):
            store.rate(rater, showings(prepared, rater.key)[0], score, SEEN)  # type: ignore[arg-type]
        assert store.done(rater) == 0
        store.join()  # nothing is left open


def test_many_threads_and_two_connections_lose_nothing(prepared: Study, path: Path) -> None:
    failed: list[BaseException] = []
    with Store(path, prepared) as first, Store(path, prepared) as second:

        def work(store: Store) -> None:
            try:
                simulate(prepared, store, lambda _: 4)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(store,)) for store in (first, second) * 8]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert first.count() == (16, 16 * prepared.ratings_a_rater) == second.count()


def test_a_full_disk_is_told_and_what_was_kept_stays(prepared: Study, path: Path) -> None:
    with Store(path, prepared) as store:
        simulate(prepared, store, lambda _: 4, stop_before=2)
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OutputError, match="full"):
            all(simulate(prepared, store, lambda _: 4) for _ in range(200))
        store._connection.execute("PRAGMA max_page_count = 1000000")
        simulate(prepared, store, lambda _: 4)
        raters, _ = store.count()
        assert raters >= 2
    with Store(path, prepared, create=False) as store:
        assert store.count()[0] == raters


def test_files_that_are_no_ratings_of_this_study(prepared: Study, path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none yet"):
        Store(path, prepared, create=False)
    assert not path.exists()
    path.write_bytes(b"no database, but long enough to be taken for one" * 50)
    with pytest.raises(InputError, match="damaged or another file"):
        Store(path, prepared)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE study (digest TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(InputError, match="damaged or another file"):
        Store(path, prepared)
    path.unlink()
    Store(path, prepared).close()
    with pytest.raises(InputError, match="another study's"):
        Store(path, replace(prepared, digest="0" * 64))
    with pytest.raises(OutputError, match="cannot open"):
        Store(tmp_path / "nowhere" / "ratings.sqlite", prepared)


def test_a_damaged_page_is_found_when_it_is_opened(prepared: Study, path: Path) -> None:
    with Store(path, prepared) as store:
        for _ in range(8):
            simulate(prepared, store, lambda _: 4)
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = random.Random(0).randbytes(len(content) - 4096 * 2)
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        Store(path, prepared)


def test_killed_while_raters_rate(tmp_path: Path) -> None:
    """kill -9 of the server again and again: what was answered is there, at most what was in flight is not."""
    prepared = small_study(tmp_path, repeats=0)
    kept = 0
    for turn in range(KILLS):
        command = [sys.executable, "-m", "srgan_fast", "mos", "serve", str(prepared.folder), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            server.stdout.readline()
            port = int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
            answered = [0] * 6
            threads = [threading.Thread(target=_rate_until_it_dies, args=(port, answered, k)) for k in range(6)]
            for thread in threads:
                thread.start()
            wait_for(lambda counts=answered, least=20 + 7 * turn: sum(counts) > least)
            server.send_signal(signal.SIGKILL)
            server.wait()
            for thread in threads:
                thread.join()
        with Store(prepared.ratings_file, load(prepared.folder)) as store:  # which checks the whole file
            everything = store._connection.execute("SELECT count(*) FROM ratings").fetchone()[0]
        new = everything - kept
        assert sum(answered) <= new <= sum(answered) + len(answered)
        kept = everything


def _rate_until_it_dies(port: int, answered: list[int], index: int) -> None:
    try:
        while True:
            with Client(port) as client:
                state = client.join()
                while state["picture"]:
                    state = client.rate(state, state["expected"] or 3)
                    answered[index] += 1
    except OSError:
        pass  # it is dead
    except Exception as error:  # http.client has several for an answer that breaks off
        if type(error).__module__ != "http.client":
            raise
