"""The Prefect server that our commands start: Prefect's own application, behind a door that knows whom it serves."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import PREFECT_HOME

from tasks import password
from tasks.platforms.local.proc import free_port


class Door:
    """What may come in: a request to one of these addresses, from a page of one of them or from no page at all.

    Prefect 3.9 looks at no Host header, so a web page whose name its owner points at 127.0.0.1 (DNS rebinding) is of
    the server's own origin to a browser; and CORS only hides answers: it refuses no request and no WebSocket.
    """

    def __init__(self, app: Any, page: str, secret: str, addresses: Iterable[str]) -> None:
        """`addresses`: without any, every Host and Origin is let in."""
        self._app, self._page, self._secret = app, page, secret
        self._origins = frozenset(addresses)
        self._hosts = {urlsplit(address).hostname for address in self._origins}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif self._origins and (why := self._strange(scope["headers"])):
            await _refuse(scope, send, why)
        elif scope["type"] == "http" and scope["path"].startswith(password.SHOW):
            question = scope["path"].removeprefix(password.SHOW)
            await _answer(send, HTTPStatus.OK, password.proof(self._secret, self._page, question))
        else:
            await self._app(scope, receive, send)

    def _strange(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Why a request is none of ours, '' when it is."""
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or _name(hosts[0]) not in self._hosts:
            return "this Host is not a name of this server"
        return "" if self._origins.issuperset(origins) else "this Origin is not this server's"


def _name(host: str) -> str | None:
    """Without its port: that of a tunnel may be another."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def _refuse(scope: Any, send: Any, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why})  # before it is accepted: a 403
    else:
        await _answer(send, HTTPStatus.FORBIDDEN, why)


async def _answer(send: Any, status: HTTPStatus, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def main(page: str, *addresses: str) -> None:
    """Serve Prefect at the address of its page, for requests to these addresses."""
    at = urlsplit(page)
    assert at.hostname and at.port
    free_port(at.hostname, at.port)  # said now: uvicorn binds after all else is up
    secret = password.keep(Path(PREFECT_HOME.value()))
    app = Door(create_app(final=True), page, secret, addresses)
    uvicorn.run(app, host=at.hostname, port=at.port, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
