"""The address of each server: requests wait for a container, or start one, and are forwarded to its port."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from modal_proto import api_pb2

from .container import Container
from .containers import TICK_S
from .functions import Service

if TYPE_CHECKING:
    from .server import FakeModal

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}
HOLD_S = 120.0


class Serving:
    """Modal's routing layer. A request that finds no container starts one, and is refused, or waits (`holds`)."""

    def __init__(self, fake: FakeModal) -> None:
        self._fake = fake
        self._runners: list[web.AppRunner] = []
        self._answered: list[tuple[str, float, int]] = []  # (service id, when, status) of every request

    async def open(self, service: Service) -> str:
        """The address of a server, the same for as long as its app lives."""
        app = web.Application(client_max_size=2**30)

        async def handle(request: web.Request) -> web.StreamResponse:
            answer = await self._handle(service, request)
            self._answered.append((service.id, time.time(), answer.status))
            return answer

        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    def ServerGetTimeRangeStats(
        self, request: api_pb2.ServerGetTimeRangeStatsRequest
    ) -> api_pb2.ServerGetTimeRangeStatsResponse:
        """Requests by status, containers started and failed [sdk: modal.Server.stats]."""
        service = self._fake.functions[request.function_id]
        since, until = request.since.ToNanoseconds() / 1e9, request.until.ToNanoseconds() / 1e9
        seen = Counter(status for id_, at, status in self._answered if id_ == service.id and since <= at < until)
        started = [c for c in self._fake.containers.all() if c.service is service and since <= c.enqueued_at < until]
        return api_pb2.ServerGetTimeRangeStatsResponse(
            since=request.since, until=request.until, request_count=seen.total(),
            request_count_by_status_code=[
                api_pb2.ServerGetTimeRangeStatsResponse.ServerStatusCodeCount(status_code=status, count=count)
                for status, count in sorted(seen.items())
            ],
            container_started_count=len(started), container_total_count=len(started),
            container_error_count=sum(bool(c.exit_code) and not c.stopping for c in started),
        )  # fmt: skip

    async def close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _handle(self, service: Service, request: web.Request) -> web.StreamResponse:
        live = self._fake.functions.live_definition(service)
        if not live:
            return web.Response(status=404, text="modal-http: app for invoked web endpoint is stopped")
        config = self._fake.functions.definitions[live].http_config
        if not config.unauthenticated:  # before anything starts [guide on proxy auth]
            given = (request.headers.get("Modal-Key"), request.headers.get("Modal-Secret"))
            if given != self._fake.lifecycle.proxy_token:
                what = "invalid" if all(given) else "missing"
                return web.Response(status=401, text=f"modal-http: {what} credentials for proxy authorization")
        container = await self._container(service)
        if container is None:
            return self._refuse(service, request)
        container.in_flight += 1
        try:
            return await self._forward(container, config.port, request)
        finally:
            container.in_flight -= 1
            container.used_at = time.time()

    async def _container(self, service: Service) -> Container | None:
        """One that is ready, rather of the live definition; none after a start that failed, or took too long."""
        end = time.time() + HOLD_S
        started: list[Container] = []
        while time.time() < end:
            live = self._fake.functions.live_definition(service)
            if not live:
                return None
            there = [c for c in self._fake.containers.live(service) if not c.stopping]
            ready = sorted((c for c in there if c.ready), key=lambda c: (c.definition_id != live, c.in_flight))
            if ready:
                return ready[-1 if self._fake.lifecycle.asks_earlier() else 0]
            if started and not there:
                return None
            started = there or [self._fake.containers.launch(service)]
            if not self._fake.lifecycle.holds:
                return None
            await asyncio.sleep(TICK_S)
        return None

    def _refuse(self, service: Service, request: web.Request) -> web.StreamResponse:
        starting = any(not c.stopping for c in self._fake.containers.live(service))
        status = self._fake.lifecycle.next_refusal() if starting else 503
        if status:
            return web.Response(status=status, text="modal-http: no live replica")
        assert request.transport
        request.transport.abort()
        return web.Response(status=503)

    async def _forward(self, container: Container, port: int, request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        connector = aiohttp.TCPConnector(socket_factory=container.socket_inside, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None)
        answered: web.StreamResponse | None = None
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            try:
                async with session.request(
                    request.method,
                    f"http://127.0.0.1:{port}{request.raw_path}",
                    headers=headers,
                    data=await request.read(),
                    allow_redirects=False,
                ) as reply:
                    answered = web.StreamResponse(status=reply.status, reason=reply.reason)
                    for name, value in reply.headers.items():
                        if name.lower() not in HOP_BY_HOP:
                            answered.headers.add(name, value)
                    await answered.prepare(request)
                    async for chunk in reply.content.iter_any():
                        await answered.write(chunk)
                    await answered.write_eof()
                    return answered
            except (aiohttp.ClientError, OSError) as error:
                if answered is None:
                    return web.Response(status=503, text=f"modal-http: {error}")
                with contextlib.suppress(Exception):
                    assert request.transport
                    request.transport.abort()
                return answered
