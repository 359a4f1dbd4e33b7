"""The rating page's server: what raters get, what they cannot get, and what a scanner tries."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from raters import AS_JSON, Client, rating, running, small_study

from srgan_fast.errors import InputError
from srgan_fast.evaluate import mos
from srgan_fast.evaluate.mos.order import showings
from srgan_fast.evaluate.mos.server import access_token, listen
from srgan_fast.evaluate.mos.store import Rater, Store
from srgan_fast.evaluate.mos.study import Study

Run = Callable[..., tuple[int, str, str]]


@dataclass
class Site:
    study: Study
    store: Store
    port: int

    def client(self) -> Client:
        return Client(self.port)

    def rater(self, client: Client) -> Rater:
        rater = self.store.rater(client.cookie.partition("=")[2])
        assert rater is not None
        return rater

    def rows(self, table: str) -> int:
        return int(self.store._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small_study(tmp_path_factory.mktemp("mos"))


@pytest.fixture(scope="module")
def site(prepared: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    path = tmp_path_factory.mktemp("site") / "ratings.sqlite"
    with Store(path, prepared) as store, running(prepared, store, names=["127.0.0.1"]) as port:
        yield Site(prepared, store, port)


def test_a_whole_set(site: Site) -> None:
    """Two raters, one of whom comes back in the middle with the cookie alone, and mends a slip."""
    total = len(site.study.calibration) + site.study.ratings_a_rater
    middle = total // 2
    expected: dict[str, list[int]] = {}
    for index in range(2):
        with site.client() as client:
            assert client.get("/api/state") == {"joined": False, "calibrations": 4, "total": total}
            state = client.join()
            seen: list[str] = []
            name = site.rater(client).key[:12]
            expected[name] = [1 + index + (position == middle - 1) for position in range(4, total)]
            for position in range(total):
                assert (state["position"], state["total"], state["score"]) == (position, total, None)
                assert (state["expected"] is not None) == (position < 4)
                assert state["picture"] not in seen
                seen.append(state["picture"])
                if position == middle:
                    assert client.join() == state  # who is known is not taken in twice
                    with Client(site.port, client.cookie) as again:
                        assert again.get("/api/state") == state
                        before = again.get("/api/state?back=1")
                        assert (before["position"], before["picture"]) == (position - 1, seen[-2])
                        assert before["score"] == 1 + index
                        assert before["next"] == state["picture"]
                        state = again.rate(before, 2 + index)
                assert state["next"] is None or state["next"].startswith("/picture/")
                state = client.rate(state, state["expected"] or 1 + index)
            assert state["picture"] is None
            assert client.get("/api/state")["picture"] is None
            assert client.post("/api/leave") == {"joined": False}
            assert client.cookie.endswith('=""')
    ratings = [one for one in site.store.ratings() if one.rater in expected]
    for name, scores in expected.items():
        assert [one.score for one in ratings if one.rater == name] == scores
        assert [one.position for one in ratings if one.rater == name and one.changes] == [middle - 1]
    assert {one.origin for one in ratings} == {"simulated"}, "a program is no human"


def test_fifty_raters_at_once(tmp_path: Path) -> None:
    """Every rating that was answered is there, with the score that was given."""
    study = small_study(tmp_path, images=2, repeats=0)
    given: dict[str, list[int]] = {}
    failed: list[BaseException] = []
    with Store(study.ratings_file, study) as store, running(study, store) as port:
        together = threading.Barrier(50)

        def work(index: int) -> None:
            try:
                with Client(port) as client:
                    together.wait()
                    state, scores = client.join(), []
                    while state["picture"]:
                        score = state["expected"] or 1 + (index * 7 + state["position"] * 3) % 5
                        scores.append(score)
                        state = client.post("/api/rating", **rating(state, score))
                    rater = store.rater(client.cookie.partition("=")[2])
                    assert rater is not None
                    given[rater.key[:12]] = scores[4:]
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        kept: dict[str, list[int]] = {}
        for one in store.ratings():
            kept.setdefault(one.rater, []).append(one.score)
    assert len(kept) == 50
    assert kept == given


def test_answers_give_no_method_away(site: Site) -> None:
    """Headers, lengths, addresses and the page are alike for every picture, whatever made it."""
    words = [method.name for method in site.study.methods] + list(site.study.images)
    words += [stimulus.id for stimulus in site.study.stimuli] + ["img_", str(site.study.folder)]
    heads = set()
    with site.client() as client:
        state = client.join()
        methods = {showing.stimulus.method for showing in showings(site.study, site.rater(client).key)}
        assert methods == {"HR", "bicubic", "nearest"}
        while state["picture"]:
            text = json.dumps(state)
            assert not [word for word in words if word in text]
            status, content = client.raw("GET", state["picture"])
            assert status == 200
            heads.add((len(content), str({key: v for key, v in client.headers.items() if key != "date"})))
            assert "etag" not in client.headers
            assert "last-modified" not in client.headers
            state = client.post("/api/rating", **rating(state, state["expected"] or 3))
        page = client.raw("GET", "/")[1].decode()
    assert len(heads) == 1
    assert not [word for word in words if word in page]


def test_the_page_stands_alone_under_its_policy(site: Site) -> None:
    with site.client() as client:
        status, content = client.raw("GET", "/")
    page = content.decode()
    assert status == 200
    assert not re.search(r"https?://|\bsrc=|<link|@import|\son\w+=|\sstyle=|innerHTML|eval\(", page)
    assert page.count("<script>") == page.count("<style>") == 1
    policy = client.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert (client.headers["cache-control"], client.headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert "server" not in client.headers
    script = page.partition("<script>")[2].partition("</script>")[0]
    assert script.count("\n") < 300
    assert all(label in script for label in mos.LABELS.values())


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(site: Site) -> None:
    with site.client() as client:
        client.join()
        flags = client.headers["set-cookie"].lower()
    assert "httponly" in flags
    assert "samesite=lax" in flags


# What a scanner tries.


@pytest.mark.parametrize(
    "path",
    [
        "/../study.json",
        "/picture/../../study.json",
        "/picture/..%2f..%2fstudy.json",
        "/picture/%2e%2e/%2e%2e/study.json",
        "/picture/....//....//etc/passwd",
        "/picture/%00",
        "/picture/" + "a" * 32,
        "/picture/' OR '1'='1",
        "/study.json",
        "/ratings.sqlite",
        "/stimuli/",
        "/.git/config",
        "//etc/passwd",
        "/api/ratings",
        "/admin",
        "/picture/%ff%fe",
        "http://127.0.0.1/study.json",
    ],
)
def test_nothing_but_the_page_is_there(site: Site, path: str) -> None:
    with site.client() as client:
        client.join()
        status, content = client.raw("GET", path.replace(" ", "%20"))
    assert status == 404
    assert len(content) < 60


def test_a_picture_is_for_its_rater_and_its_time(site: Site) -> None:
    with site.client() as first, site.client() as second, site.client() as nobody:
        state, other = first.join(), second.join()
        assert second.raw("GET", state["picture"])[0] == 404
        assert nobody.raw("GET", state["picture"])[0] == 401
        before = site.rows("ratings")
        order = showings(site.study, site.rater(first).key)
        assert first.raw("GET", f"/picture/{order[1].address}")[0] == 200  # fetched ahead
        assert first.raw("GET", f"/picture/{order[2].address}")[0] == 404
        ahead = {**state, "picture": f"/picture/{order[3].address}"}
        body = json.dumps(rating(ahead, order[3].stimulus.expected)).encode()
        assert first.raw("POST", "/api/rating", body, AS_JSON)[0] == 409
        body = json.dumps(rating(other, other["expected"])).encode()
        assert first.raw("POST", "/api/rating", body, AS_JSON)[0] == 422
        for cookie in ("", "x" * 5000, "a=b", "\xff\xfe", first.cookie[:-1], first.cookie + "0", "' OR 1=1 --"):
            with Client(site.port) as stranger:
                assert stranger.raw("GET", "/api/state", headers={"Cookie": cookie})[0] == 200
                assert stranger.raw("POST", "/api/rating", body, {**AS_JSON, "Cookie": cookie})[0] == 401
    assert site.rows("ratings") == before


INJECTION = "'); DROP TABLE ratings; --"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe\x00", 400),
        (b"[" * 4000, 400),
        (b"[]", 400),
        (b'"x"', 400),
        (b"{}", 422),
        (b'{"score": 1' + b" " * 5000 + b"}", 413),
        (b"x" * 1_000_000, 413),
        ({"score": 0}, 422),
        ({"score": 6}, 422),
        ({"score": True}, 422),
        ({"score": "1"}, 422),
        ({"score": 1.0}, 422),
        ({"score": None}, 422),
        ({"score": [1]}, 422),
        ({"score": 10**400}, 422),
        ({"score": INJECTION}, 422),
        ({"address": INJECTION}, 422),
        ({"address": "<script>alert(1)</script>"}, 422),
        ({"address": ["a"]}, 422),
        ({"address": "\ud800"}, 422),
        ({"elapsed_ms": -1}, 422),
        ({"elapsed_ms": INJECTION}, 422),
        ({"width": None}, 422),
        ({"height": 10**400}, 422),
        ({"ratio": float("nan")}, 422),
        ({"zoom": float("inf")}, 422),
        ({"fits": 1}, 422),
        ({"fits": "<img src=x onerror=alert(1)>"}, 422),
    ],
)
def test_a_rating_that_is_none(site: Site, body: bytes | dict[str, object], status: int) -> None:
    with site.client() as client:
        state = client.join()
        if isinstance(body, dict):
            body = json.dumps(rating(state, state["expected"]) | body).encode()
        found, content = client.raw("POST", "/api/rating", body, AS_JSON)
        assert found == status
        assert b"script" not in content
        assert b"<" not in content, "nothing that was sent comes back"
        assert client.get("/api/state") == state
        state = client.rate(state, state["expected"])  # and the next one is taken
        assert state["position"] == 1


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_forms_of_other_sites_are_refused(site: Site, kind: str) -> None:
    with site.client() as client:
        for path in ("/api/join", "/api/leave", "/api/rating"):
            assert client.raw("POST", path, b'{"automated": true}', {"Content-Type": kind})[0] == 415
        assert client.raw("OPTIONS", "/api/rating")[0] == 405
        assert "access-control-allow-origin" not in client.headers


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "GET"])
def test_other_methods(site: Site, method: str) -> None:
    with site.client() as client:
        assert client.raw(method, "/api/rating")[0] == 405


def test_other_names_of_the_server_are_refused(site: Site) -> None:
    for name, status in (
        ("127.0.0.1", 200),
        ("127.0.0.1:99", 200),
        ("evil.example", 421),
        ("", 421),
        ("[::1]:80", 421),
    ):
        with site.client() as client:
            assert client.raw("GET", "/", headers={"Host": name})[0] == status


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /api/rating HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/rating HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request(site: Site, request_: bytes) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert not answer or re.match(rb"HTTP/1.1 4\d\d ", answer)
    with site.client() as client:
        assert client.get("/api/state")["joined"] is False


def test_a_body_that_breaks_off_is_nothing(site: Site) -> None:
    before = site.rows("raters")
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
        connection.sendall(
            b"POST /api/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2000\r\n\r\n{"
        )
    with site.client() as client:
        assert client.get("/api/state")["joined"] is False
    assert site.rows("raters") == before


def test_the_access_token(prepared: Study, tmp_path: Path) -> None:
    token = access_token(prepared)
    assert len(token) == 32
    with Store(tmp_path / "r.sqlite", prepared) as store, running(prepared, store, access=token) as port:
        with Client(port) as client:
            for path in ("/", "/api/state", "/picture/x", "/favicon.ico", "/nothing", "/?access=", "/?access=x"):
                assert client.raw("GET", path)[0] == 403
            for wrong in (token[:-1], token + "0", token.upper(), "%00", "%ff", "'%20OR%201=1--"):
                assert client.raw("GET", f"/?access={wrong}")[0] == 403
            assert client.raw("POST", "/api/join", b"{}", AS_JSON)[0] == 403
            assert client.raw("GET", f"/api/state?access={token}")[0] == 403
            assert client.cookie == ""
            assert client.raw("GET", f"/?access={token}") == (303, b"")
            assert client.headers["location"] == "/"
            assert "httponly" in client.headers["set-cookie"].lower()
            access = client.cookie
            assert client.raw("GET", "/")[0] == 200
            client.join()
            client.cookie = f"{access}; {client.cookie}"
            assert client.get("/api/state")["position"] == 0
            for wrong in ("", token[:-1], "x" * 32):
                with Client(port, f"{access.partition('=')[0]}={wrong}") as stranger:
                    assert stranger.raw("GET", "/api/state")[0] == 403
        with Client(port, client.cookie.partition("; ")[2]) as client:
            assert client.raw("GET", "/api/state")[0] == 403, "a rater's token is no access token"


def test_a_rating_that_cannot_be_kept_is_not_thanked_for(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with site.client() as client:
        state = client.join()
        other = Store(site.store._path, site.study)
        site.store._connection.execute("PRAGMA busy_timeout = 50")
        other._connection.execute("BEGIN IMMEDIATE")
        body = json.dumps(rating(state, state["expected"])).encode()
        status, content = client.raw("POST", "/api/rating", body, AS_JSON)
        assert status == 503
        assert b"try again" in content
        other._connection.execute("ROLLBACK")
        other.close()
        site.store._connection.execute("PRAGMA busy_timeout = 10000")
        assert client.get("/api/state") == state
        assert client.rate(state, state["expected"])["position"] == 1
    assert "locked" in caplog.text


# The command.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_command_ends_in_good_order(prepared: Study, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "srgan_fast", "mos", "serve", str(prepared.folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        said = server.stdout.readline()
        address = server.stdout.readline()
        assert f"3 images, {prepared.ratings_a_rater} ratings a rater; so far" in said
        assert re.fullmatch(r"rate at http://127\.0\.0\.1:\d+/\n", address)
        before = int(re.search(r"so far (\d+)", said)[1])  # type: ignore[index]
        with Client(int(address.rstrip("/\n").rpartition(":")[2])) as client:
            state = client.join()
            for _ in range(6):
                state = client.rate(state, state["expected"] or 3)
            server.send_signal(number)
            assert server.wait(30) == 130
        assert re.fullmatch(rf"srgan-fast: stopped; {before + 2} ratings by .* in .*\n", server.stderr.read())


@pytest.mark.parametrize("options", [("--host", "0.0.0.0"), ("--name", "Rate.example")])
def test_the_command_asks_for_a_token_where_others_can_reach_it(prepared: Study, options: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "srgan_fast", "mos", "serve", str(prepared.folder), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        server.stdout.readline()
        address = server.stdout.readline()
        assert address.endswith(f"/?access={access_token(prepared)}\n")
        assert "0.0.0.0" not in address
        assert "whoever has this address can rate" in server.stdout.readline()
        port = int(re.search(r":(\d+)/", address)[1])  # type: ignore[index]
        for name, status in (("rate.example", 303), ("evil.example", 421 if "--name" in options else 303)):
            with Client(port) as client:
                assert client.raw("GET", "/")[0] == 403
                path = address.rstrip().rpartition("/")[2]
                assert client.raw("GET", f"/{path}", headers={"Host": name})[0] == status
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 130


def test_what_cannot_be_served(prepared: Study, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as listener:
        code, _, err = run("mos", "serve", prepared.folder, "--port", listener.getsockname()[1])
        assert code == 2
        assert "give another --port" in err
    with pytest.raises(InputError, match="cannot listen on"):
        listen("no such host", 0)
    monkeypatch.setattr("srgan_fast.evaluate.mos.find_spec", lambda name: None)
    code, _, err = run("mos", "serve", prepared.folder)
    assert code == 3
    assert "starlette and uvicorn not installed; pip install 'srgan-fast[mos]'" in err


def test_stopping_waits_for_what_is_being_answered(
    prepared: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path / "r.sqlite", prepared) as store:
        arrived, keep = threading.Event(), store.rate

        def rate(*arguments: Any) -> None:
            arrived.set()
            time.sleep(0.5)  # a slow disk
            keep(*arguments)

        monkeypatch.setattr(store, "rate", rate)
        with running(prepared, store) as port:
            client = Client(port)  # which stays until the answer has been read
            state = client.join()
            body = json.dumps(rating(state, state["expected"])).encode()
            result: list[int] = []
            thread = threading.Thread(target=lambda: result.append(client.raw("POST", "/api/rating", body, AS_JSON)[0]))
            thread.start()
            assert arrived.wait(30)
            assert result == []
        with client:
            thread.join()
        assert result == [200]
        assert store._connection.execute("SELECT count(*) FROM ratings").fetchone() == (1,)
