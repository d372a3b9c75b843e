"""Log lines of containers, found by app, container, function, call, source, text and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from .lifecycle import Lifecycle

SYSTEM = api_pb2.FILE_DESCRIPTOR_INFO
Source: TypeAlias = "api_pb2.FileDescriptor.ValueType"
"""A stream of a container; ValueType is there for type checkers alone."""


@dataclass(frozen=True)
class Line:
    index: int
    app_id: str
    function_id: str
    task_id: str
    call_id: str
    source: Source
    time: float
    text: str


class Logs:
    """Every line that a container wrote, and what the system has to say about it."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self.lines: list[Line] = []

    def write(self, text: str, source: Source, app_id: str, function_id: str, task_id: str, call_id: str = "") -> None:
        self.lines.append(Line(len(self.lines) + 1, app_id, function_id, task_id, call_id, source, time.time(), text))

    def text(self, task_id: str = "") -> str:
        """What was written, of one container or of all, for a test to look into."""
        return "\n".join(line.text for line in self.lines if task_id in ("", line.task_id))

    def _select(self, asked: api_pb2.AppGetLogsRequest | api_pb2.AppFetchLogsRequest, source: Source) -> list[Line]:
        return [
            line
            for line in self.lines
            if (not asked.app_id or line.app_id == asked.app_id)
            and (not asked.task_id or line.task_id == asked.task_id)
            and (not asked.function_id or line.function_id == asked.function_id)
            and (not asked.function_call_id or line.call_id == asked.function_call_id)
            and asked.search_text in line.text
            and (not source or line.source == source)
            and (line.source != SYSTEM or line.time <= time.time() - self._lifecycle.log_lag_s)
        ]

    def AppFetchLogs(self, request: api_pb2.AppFetchLogsRequest) -> api_pb2.AppFetchLogsResponse:
        lines = [line for line in self._select(request, request.source) if _within(line, request.since, request.until)]
        return api_pb2.AppFetchLogsResponse(batches=[_batch(line) for line in lines[-(request.limit or len(lines)) :]])

    async def AppGetLogs(self, request: api_pb2.AppGetLogsRequest) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        """Lines after the last one seen, then new ones as they come until the time asked for is over."""
        seen = int(request.last_entry_id or 0)
        end = time.monotonic() + request.timeout
        while True:
            for line in self._select(request, request.file_descriptor):
                if line.index > seen:
                    seen = line.index
                    yield _batch(line)
            if time.monotonic() >= end:
                return
            await asyncio.sleep(0.05)


def _within(line: Line, since: Timestamp, until: Timestamp) -> bool:
    at = line.time * 1e9
    return since.ToNanoseconds() <= at and (not until.ToNanoseconds() or at <= until.ToNanoseconds())


def _batch(line: Line) -> api_pb2.TaskLogsBatch:
    item = api_pb2.TaskLogs(
        data=line.text + "\n",
        timestamp=line.time,
        timestamp_ns=int(line.time * 1e9),
        file_descriptor=line.source,
        function_call_id=line.call_id,
    )
    return api_pb2.TaskLogsBatch(
        task_id=line.task_id, function_id=line.function_id, entry_id=str(line.index), items=[item]
    )
