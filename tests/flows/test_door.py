"""Who is let in to the Prefect server of a command, by what a request says of where it comes from."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flows.door import Door

OWN = ("http://127.0.0.1:4200", "http://localhost:4200", "https://release.example")


async def _prefect(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - as a server calls it
    await send({"type": "let in"})


def first_answer(*headers: tuple[str, str], kind: str = "http", addresses: tuple[str, ...] = OWN) -> dict[str, Any]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": kind, "path": "/api/flows", "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers]}
    asyncio.run(Door(_prefect, OWN[0], "secret", addresses)(scope, None, send))
    return sent[0]


@pytest.mark.parametrize("host", ["127.0.0.1:4200", "localhost:9999", "LOCALHOST", "release.example"])
@pytest.mark.parametrize("origin", [*OWN, None])
def test_its_own_addresses_are_let_in_a_proxys_too(host: str, origin: str | None) -> None:
    headers = [("host", host), *([("origin", origin)] if origin else [])]
    assert first_answer(*headers) == first_answer(*headers, kind="websocket") == {"type": "let in"}


@pytest.mark.parametrize(
    "headers",
    [
        [], [("host", "")], [("host", "evil.example")], [("host", "localhost.")], [("host", "evil@evil.example")],
        [("host", "[")], [("host", "\xff")], [("host", "localhost"), ("host", "evil.example")],
        [("host", "release.example.evil")], [("host", "localhost"), ("origin", "http://localhost")],
        [("host", "localhost"), ("origin", "http://localhost:4200"), ("origin", "http://evil.example")],
        [("host", "localhost"), ("origin", "")], [("host", "localhost"), ("origin", "http://release.example")],
    ],
)  # fmt: skip
def test_all_else_is_refused_before_prefect_sees_it(headers: list[tuple[str, str]]) -> None:
    assert first_answer(*headers)["status"] == 403
    assert first_answer(*headers, kind="websocket")["type"] == "websocket.close"
    assert first_answer(*headers, addresses=()) == {"type": "let in"}, "a proxy has looked"


def test_prefects_own_start_is_its_own_business() -> None:
    assert first_answer(kind="lifespan") == {"type": "let in"}
