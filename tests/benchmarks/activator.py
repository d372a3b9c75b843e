"""What the activator adds: each request once through it and once past it, in turn, against the same server.

Ratios are median through the activator / median direct; 1.00 is no cost at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from statistics import median

from tasks.endpoint import Client
from tasks.platforms.local import LocalPlatform
from tasks.release import Endpoint, Release
from tests.benchmarks.released import copied

Measure = Callable[[Client], list[float]]
"""Seconds, one or more, of one exchange."""

ROUNDS = {"GET /health": 60, "16 tokens": 10, "16 tokens streamed, per token": 10}


def health(client: Client) -> list[float]:
    return [client.get("/health").seconds]


def completion(client: Client) -> list[float]:
    return [client.chat("Hello", max_tokens=16, ignore_eos=True, temperature=0).seconds]


def token_gaps(client: Client) -> list[float]:
    stream = client.stream("Hello", max_tokens=16, ignore_eos=True, temperature=0)
    return [after - before for before, after in pairwise(stream.arrived_s)]


def compare(measure: Measure, through: Endpoint, direct: Endpoint, rounds: int, at_once: int) -> tuple[float, float]:
    """Median seconds (through the activator, direct) of interleaved rounds with `at_once` clients.

    Each exchange has a new connection: llama-server closes kept ones after 5 s, a request sent just then is lost.
    """
    found: tuple[list[float], list[float]] = ([], [])
    with ThreadPoolExecutor(at_once) as pool:
        for turn in range(rounds):
            for which in (0, 1) if turn % 2 else (1, 0):  # so that neither is always first
                with ExitStack() as stack:
                    where = (through, direct)[which]
                    clients = [stack.enter_context(Client(where)) for _ in range(at_once)]
                    for seconds in pool.map(measure, clients):
                        found[which].extend(seconds)
    return median(found[0]), median(found[1])


def main() -> Iterator[str]:
    """Lines of a small table, measured on a copy of the newest release in the store that the settings name."""
    with copied() as (platform, release):
        yield from measured(release, platform)


def measured(release: Release, platform: LocalPlatform) -> Iterator[str]:
    """The table's lines, one as soon as it is measured."""
    through = platform.deploy("staging", release, lambda _: None)
    with Client(through) as client:
        client.get("/health")
    status = platform.status("staging")
    assert status is not None
    assert status.server_url is not None
    direct = Endpoint(base_url=status.server_url, api_key=through.api_key)
    yield f"{'request':32}{'clients':>8}{'activator ms':>14}{'direct ms':>11}{'ratio':>7}"
    measures = {"GET /health": health, "16 tokens": completion, "16 tokens streamed, per token": token_gaps}
    for name, measure in measures.items():
        for at_once in (1, 8):
            a, d = compare(measure, through, direct, ROUNDS[name], at_once)
            yield f"{name:32}{at_once:8}{1000 * a:14.2f}{1000 * d:11.2f}{a / d:7.2f}"
