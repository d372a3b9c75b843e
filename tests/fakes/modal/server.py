"""The fake itself: a thread that answers gRPC, hands each RPC to the part that knows it, and keeps a record."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpclib.server
import modal
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

from .apps import Apps
from .container import Container, calling
from .containers import Containers
from .faults import Faults
from .functions import Functions
from .images import Images
from .lifecycle import Lifecycle
from .logs import Logs
from .objects import OWNER, Environments
from .serving import Serving
from .storage import Blobs, Dicts, Mounts, Secrets
from .volumes import Volumes

R = TypeVar("R")
RPCS = {name for name in dir(ModalClientBase) if name[0].isupper()}


@dataclass(frozen=True)
class Call:
    """An RPC as it came in."""

    rpc: str
    request: Message
    task_id: str | None


class Door:
    """The ModalClient service as one caller finds it: clients with a token on TCP, each container on its own socket."""

    def __init__(self, fake: FakeModal, container: Container | None) -> None:
        self._answer = partial(fake.answer, container)

    def __getattr__(self, rpc: str) -> Callable[..., Coroutine[Any, Any, None]]:
        if not rpc[0].isupper():
            raise AttributeError(rpc)
        return partial(self._answer, rpc)

    __mapping__ = ModalClientBase.__mapping__


class FakeModal:
    """The control plane, up inside a `with`. `folder` keeps what is in volumes and what containers leave."""

    def __init__(
        self, folder: Path, token: tuple[str, str] = ("ak-fake", "as-fake"), machine: Mapping[str, str] | None = None
    ) -> None:
        """`machine`: environment variables that every container has from the machine it runs on, below its image's."""
        self.folder, self.token, self.machine = folder, token, dict(machine or {})
        self.calls: list[Call] = []
        self.failures: list[str] = []  # RPCs that the fake does not have, or broke on: a test ends by seeing none
        self.faults = Faults()
        self.lifecycle = Lifecycle()
        self.environments = Environments()
        self.logs = Logs(self.lifecycle)
        self.blobs = Blobs(folder / "blobs")
        self.volumes = Volumes(folder / "volumes", self.environments, self.blobs, self.lifecycle)
        self.dicts = Dicts(self.environments)
        self.secrets = Secrets(self.environments)
        self.mounts = Mounts(self.blobs)
        self.images = Images()
        self.functions = Functions(self)
        self.apps = Apps(self)
        self.containers = Containers(self)
        self.serving = Serving(self)
        parts = (
            self, self.environments, self.logs, self.blobs, self.volumes, self.dicts, self.secrets, self.mounts,
            self.images, self.functions, self.apps, self.containers, self.serving,
        )  # fmt: skip
        self._methods = {name: getattr(part, name) for part in parts for name in dir(type(part)) if name in RPCS}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-modal", daemon=True)
        self.url = ""

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": self.token[0],
            "MODAL_TOKEN_SECRET": self.token[1],
            "MODAL_CONFIG_PATH": str(self.folder / "no-modal.toml"),
        }

    def __enter__(self) -> FakeModal:
        self._thread.start()
        self.wait_for(self._start())
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.wait_for(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @contextlib.contextmanager
    def here(self) -> Iterator[FakeModal]:
        """The environment of this process, so that the SDK in it talks to the fake."""
        before = dict(os.environ)
        modal.Client._set_env_client(None)
        os.environ.update(self.env)
        try:
            yield self
        finally:
            modal.Client.from_env().close()
            os.environ.clear()
            os.environ.update(before)

    def wait_for(self, doing: Coroutine[Any, Any, R]) -> R:
        """What a coroutine of the fake's own loop returns, for a caller in another thread."""
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(60)

    def requests(self, rpc: str) -> list[Any]:
        """The messages that came in for `rpc`, oldest first."""
        return [call.request for call in self.calls if call.rpc == rpc]

    async def listen(self, container: Container | None, where: socket.socket) -> grpclib.server.Server:
        """A gRPC server with a door for `container`."""
        server = grpclib.server.Server([Door(self, container)])
        await server.start(sock=where)
        return server

    async def _start(self) -> None:
        loopback = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{loopback.getsockname()[1]}"
        self._grpc = await self.listen(None, loopback)
        await self.blobs.start()
        await self.containers.start()

    async def _stop(self) -> None:
        await self.containers.close()
        await self.serving.close()
        await self.blobs.close()
        self._grpc.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def answer(self, container: Container | None, rpc: str, stream: grpclib.server.Stream[Any, Any]) -> None:
        """Serves one RPC: recorded, checked for its token, struck by an armed fault, then answered by its part."""
        request = await stream.recv_message()
        assert request is not None
        self.calls.append(Call(rpc, request, container.task_id if container else None))
        if container is None:
            self._check_token(stream.metadata)
        fault = self.faults.next_of(rpc)
        if fault:
            fault.strike()
        if rpc not in self._methods:
            self.failures.append(f"{rpc} is not implemented by the fake")
            raise GRPCError(Status.UNIMPLEMENTED, f"The fake Modal does not implement {rpc}")
        calling.set(container)
        try:
            answer = self._methods[rpc](request)
            if inspect.isasyncgen(answer):
                async for message in answer:
                    await stream.send_message(message)
                return
            if inspect.isawaitable(answer):
                answer = await answer
        except GRPCError as error:
            if error.status is Status.UNIMPLEMENTED:
                self.failures.append(f"{rpc}: {error.message}")
            raise
        except Exception as error:
            self.failures.append(f"{rpc} broke: {traceback.format_exc()}")
            raise GRPCError(Status.INTERNAL, f"The fake broke in {rpc}: {error!r}") from error
        if fault:
            stream._stream._transport.abort()
            return
        await stream.send_message(Empty() if answer is None else answer)

    def _check_token(self, metadata: Any) -> None:
        given = (metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret"))
        if given != self.token:
            raise GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed")

    def ClientHello(self, _: Message) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse(image_builder_version=Environments.BUILDER)

    def WorkspaceNameLookup(self, _: Message) -> api_pb2.WorkspaceNameLookupResponse:
        return api_pb2.WorkspaceNameLookupResponse(workspace_name="fake-workspace", username=OWNER)

    def TokenInfoGet(self, _: Message) -> api_pb2.TokenInfoGetResponse:
        return api_pb2.TokenInfoGetResponse(
            token_id=self.token[0], workspace_name="fake-workspace", user_identity=api_pb2.UserIdentity(username=OWNER)
        )
