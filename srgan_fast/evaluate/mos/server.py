"""The page on which people rate, and the little that it needs: who rates, what comes next, the picture, the score.

A rater is a random token in a cookie. A picture has another address for each rater and place; addresses, headers and
lengths are alike for all methods. Every answer says that it is not to be kept.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srgan_fast.errors import InputError, OutputError
from srgan_fast.evaluate.mos.order import Showing, showings
from srgan_fast.evaluate.mos.store import Circumstances, OutOfTurn, Rater, Store
from srgan_fast.evaluate.mos.study import Study

_log = logging.getLogger(__name__)

_MOST_BYTES = 4096  # of what a browser sends; a rating has some 200
_COOKIE_S = 180 * 24 * 3600
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _Refused(Exception):
    """A request that is answered with a status and a line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    return host in _LOOPBACK


def access_token(study: Study) -> str:
    """The token that raters need where others could reach the page too; the same after a restart."""
    return study.keyed("access")


def application(study: Study, store: Store, *, access: str | None = None, names: Sequence[str] = ()) -> ASGIApp:
    """The page and its answers. With `access`, nothing is told to whoever has not opened /?access=TOKEN once.

    `names` are those under which the server may be called; any, if there are none. Without them another site could
    have its own name point here, and rate in a visitor's browser.
    """
    pages = _Pages(study, store)
    routes = [
        Route("/", pages.page),
        Route("/favicon.ico", pages.nothing),
        Route("/api/join", pages.join, methods=["POST"]),
        Route("/api/leave", pages.leave, methods=["POST"]),
        Route("/api/state", pages.state),
        Route("/api/rating", pages.rate, methods=["POST"]),
        Route("/picture/{address}", pages.picture),
    ]

    def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, _Refused)
        return PlainTextResponse(f"{error}\n", error.status)

    def unwritten(_: Request, error: Exception) -> Response:
        _log.error("%s", error)
        return PlainTextResponse("The rating could not be kept. Please try again.\n", 503)

    app = Starlette(routes=routes, exception_handlers={_Refused: refused, OutputError: unwritten})
    app.router.redirect_slashes = False
    return _Gate(app, study, pages.policy, access, frozenset(names))


class _Gate:
    """Before every request: the name of the server and the access token. Behind every answer: the headers."""

    def __init__(self, app: ASGIApp, study: Study, policy: str, access: str | None, names: frozenset[str]) -> None:
        self._app, self._access, self._names = app, access, names
        self._cookie = f"mos_access_{study.digest[:8]}"
        self._headers = [
            (key.lower().encode(), value.encode())
            for key, value in {**_HEADERS, "Content-Security-Policy": policy}.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # uvicorn refuses the handshake of a web socket that nobody accepts

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        answer = self._refusal(Request(scope)) or self._app
        await answer(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if self._names and _host(request.headers.get("host", "")) not in self._names:
            return PlainTextResponse("This server has another name.\n", 421)
        if self._access is None:
            return None
        given = request.query_params.get("access")
        if given is not None and _same(given, self._access) and request.url.path == "/":
            # The token leaves the address, which is seen on the screen and kept in the history.
            answer = RedirectResponse("/", 303)
            secure = request.url.scheme == "https"
            answer.set_cookie(self._cookie, given, _COOKIE_S, httponly=True, samesite="lax", secure=secure)
            return answer
        if _same(request.cookies.get(self._cookie, ""), self._access):
            return None
        return PlainTextResponse("Please open the whole address that you were given.\n", 403)


class _Pages:
    """What is answered, each by a method."""

    def __init__(self, study: Study, store: Store) -> None:
        self._study, self._store = study, store
        self._cookie = f"mos_rater_{study.digest[:8]}"
        self._page = (files("srgan_fast.evaluate.mos") / "page.html").read_text("utf-8")
        self._showings = lru_cache(maxsize=128)(self._index)
        self.policy = _policy(self._page)

    def _index(self, key: str) -> tuple[list[Showing], dict[str, Showing]]:
        found = showings(self._study, key)
        return found, {showing.address: showing for showing in found}

    def _rater(self, request: Request) -> Rater:
        rater = self._store.rater(request.cookies.get(self._cookie, ""))
        if rater is None:
            raise _Refused(401, "Please open the page first.")
        return rater

    def page(self, request: Request) -> Response:
        """The page; it is the same for everyone."""
        return HTMLResponse(self._page)

    def nothing(self, request: Request) -> Response:
        """No icon."""
        return Response(status_code=204)

    async def join(self, request: Request) -> Response:
        """Make a rater of a browser; one that is driven by a program says so, and is never taken for a human."""
        body = await _body(request)
        return await run_in_threadpool(self._join, request, body)

    def _join(self, request: Request, body: dict[str, Any]) -> Response:
        if self._store.rater(request.cookies.get(self._cookie, "")) is not None:
            return JSONResponse(self._situation(self._rater(request)))
        token = self._store.join("simulated" if body.get("automated") is True else "browser")
        rater = self._store.rater(token)
        assert rater is not None
        answer = JSONResponse(self._situation(rater))
        secure = request.url.scheme == "https"
        answer.set_cookie(self._cookie, token, _COOKIE_S, httponly=True, samesite="lax", secure=secure)
        return answer

    async def leave(self, request: Request) -> Response:
        """Forget who rates in this browser, for the next one; the ratings stay."""
        await _body(request)
        answer = JSONResponse({"joined": False})
        answer.delete_cookie(self._cookie, httponly=True, samesite="lax")
        return answer

    def state(self, request: Request) -> Response:
        """Where a rater is; with ?back=1, at the picture before that."""
        rater = self._store.rater(request.cookies.get(self._cookie, ""))
        if rater is None:
            calibrations, total = len(self._study.calibration), self._study.ratings_a_rater
            return JSONResponse({"joined": False, "calibrations": calibrations, "total": calibrations + total})
        return JSONResponse(self._situation(rater, back=request.query_params.get("back") == "1"))

    def picture(self, request: Request) -> Response:
        """A picture, for the rater alone who has come to it, or comes to it next."""
        rater = self._rater(request)
        showing = self._showings(rater.key)[1].get(request.path_params["address"])
        if showing is None or showing.position > self._store.done(rater) + 1:
            raise _Refused(404, "There is no such picture.")
        try:
            content = self._study.path(showing.stimulus).read_bytes()
        except OSError as error:
            raise OutputError(f"cannot read {error.filename}: {error.strerror}") from error
        return Response(content, media_type="image/png")

    async def rate(self, request: Request) -> Response:
        """Keep a rating and say what comes next."""
        body = await _body(request)
        return await run_in_threadpool(self._rate, request, body)

    def _rate(self, request: Request, body: dict[str, Any]) -> Response:
        rater = self._rater(request)
        address, score = body.get("address"), body.get("score")
        showing = self._showings(rater.key)[1].get(address) if isinstance(address, str) else None
        if showing is None:
            raise _Refused(422, "There is no such picture.")
        if type(score) is not int or not 1 <= score <= 5:
            raise _Refused(422, "A score is 1, 2, 3, 4 or 5.")
        if showing.stimulus.expected not in (None, score):
            raise _Refused(422, f"This is an example of {showing.stimulus.expected}.")
        try:
            self._store.rate(rater, showing, score, _circumstances(body))
        except OutOfTurn:
            raise _Refused(409, "This picture's turn has not come.") from None
        return JSONResponse(self._situation(rater))

    def _situation(self, rater: Rater, *, back: bool = False) -> dict[str, Any]:
        order = self._showings(rater.key)[0]
        done = self._store.done(rater)
        position = max(0, done - 1) if back else done
        return {
            "joined": True,
            "calibrations": len(self._study.calibration),
            "total": len(order),
            "position": position,
            "picture": _picture(order, position),
            "next": _picture(order, position + 1),
            "expected": order[position].stimulus.expected if position < len(order) else None,
            "score": self._store.score(rater, position),
        }


def _picture(order: Sequence[Showing], position: int) -> str | None:
    return f"/picture/{order[position].address}" if position < len(order) else None


async def _body(request: Request) -> dict[str, Any]:
    """A small JSON object. Only that: a form of another site cannot send this type without asking first."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _Refused(415, "Expected application/json.")
    content = b""
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > _MOST_BYTES:
                raise _Refused(413, f"Expected at most {_MOST_BYTES} bytes.")
    except ClientDisconnect:
        raise _Refused(400, "The request broke off.") from None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise _Refused(400, "Expected JSON.") from None
    if not isinstance(found, dict):
        raise _Refused(400, "Expected a JSON object.")
    return found


def _circumstances(body: dict[str, Any]) -> Circumstances:
    def number(name: str, most: float) -> float:
        value = body.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
            raise _Refused(422, f"Expected {name} from 0 to {most:g}.")
        return float(value)

    fits = body.get("fits")
    if type(fits) is not bool:
        raise _Refused(422, "Expected fits to be true or false.")
    return Circumstances(
        elapsed_ms=int(number("elapsed_ms", 1e12)),
        width=int(number("width", 1e6)),
        height=int(number("height", 1e6)),
        ratio=number("ratio", 100),
        zoom=number("zoom", 100),
        fits=fits,
    )


def _policy(page: str) -> str:
    """The page's own script and style, pictures that the script has fetched, answers of this server; nothing else."""

    def own(tag: str) -> str:
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {own('script')}; style-src {own('style')}; img-src blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _host(header: str) -> str:
    """A Host header without its port, in lower case; an IPv6 address without brackets."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::\d*)?", header)
    return bracketed[1].lower() if bracketed else header.partition(":")[0].lower()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


class _Server(uvicorn.Server):
    """uvicorn, which knows SIGINT and SIGTERM, told by the caller when to end as well."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], bool]) -> None:
        super().__init__(config)
        self._stop = stop

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        return self._stop() or await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """Take a port, any free one for 0.

    Raises:  InputError if it is taken, not allowed, or the host is not this machine's
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=512)
        # asyncio sets it only where a socket tells its protocol; without it an answer may wait for 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host} port {port}: {reason}; give another --port or --host") from error


def serve(app: ASGIApp, listener: socket.socket, stop: Callable[[], bool]) -> None:
    """Answer until `stop` says so or a signal comes; what is being answered then is answered to its end."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="error",
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=10,
        limit_concurrency=1000,
    )
    _Server(config, stop).run(sockets=[listener])
