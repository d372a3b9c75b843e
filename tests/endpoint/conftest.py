"""The sync and the async client behind one face, so that each test is of both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tasks.endpoint import Answer, AsyncClient, Client, Patience
from tasks.release import Endpoint

AT_ONCE = Patience(cold_start_s=20, pause_s=(0, 0))
"""No test sleeps; whether the pauses are right is tested on the chain."""

Use = Callable[..., Any]
Ask = Callable[..., Answer]


@pytest.fixture(params=["sync", "async"])
def use(request: pytest.FixtureRequest) -> Use:
    """Runs each of `works` on one client and returns what the last one gave."""

    def sync(endpoint: Endpoint, *works: Callable[[Any], Any], patience: Patience = AT_ONCE, **options: Any) -> Any:
        with Client(endpoint, patience=patience, **options) as client:
            return [work(client) for work in works][-1]

    def asynchronous(
        endpoint: Endpoint, *works: Callable[[Any], Any], patience: Patience = AT_ONCE, **options: Any
    ) -> Any:
        async def run() -> Any:
            async with AsyncClient(endpoint, patience=patience, **options) as client:
                return [await work(client) for work in works][-1]

        return asyncio.run(run())

    return sync if request.param == "sync" else asynchronous


@pytest.fixture
def ask(use: Use) -> Ask:
    def one(endpoint: Endpoint, text: str = "What now?", **params: Any) -> Answer:
        answer: Answer = use(endpoint, lambda client: client.ask(text, **params))
        return answer

    return one
