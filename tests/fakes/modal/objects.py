"""Ids, environments, and objects that are found by name in an environment."""

from __future__ import annotations

import hashlib
import secrets
import string
import time
from typing import Generic, TypeVar

from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2

T = TypeVar("T")
ALPHABET = string.ascii_letters + string.digits
OWNER = "fake-user"


def new_id(prefix: str) -> str:
    """`ap-` and 22 letters and digits, the form that the CLI takes for an id."""
    return f"{prefix}-" + "".join(secrets.choice(ALPHABET) for _ in range(22))


def id_of(prefix: str, content: bytes) -> str:
    """The same id for the same content."""
    return f"{prefix}-{hashlib.sha256(content).hexdigest()[:22]}"


def wire(message: Message) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


def not_found(what: str) -> GRPCError:
    return GRPCError(Status.NOT_FOUND, f"{what} not found.")


class Environments:
    """The workspace's environments; the default one is called main."""

    BUILDER = "2025.06"

    def __init__(self) -> None:
        self._ids = {"main": new_id("en")}

    def name(self, asked: str) -> str:
        """The environment meant by a request, which leaves the default one empty."""
        name = asked or "main"
        if name not in self._ids:
            raise not_found(f"Environment '{name}'")
        return name

    def EnvironmentCreate(self, request: api_pb2.EnvironmentCreateRequest) -> None:
        if request.name in self._ids:
            raise GRPCError(Status.ALREADY_EXISTS, f"Environment '{request.name}' already exists.")
        self._ids[request.name] = new_id("en")

    def EnvironmentList(self, _: Message) -> api_pb2.EnvironmentListResponse:
        return api_pb2.EnvironmentListResponse(
            items=[
                api_pb2.EnvironmentListItem(name=name, environment_id=id_, default=name == "main", created_at=1)
                for name, id_ in self._ids.items()
            ]
        )

    def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
            self._ids.setdefault(request.deployment_name, new_id("en"))
        name = self.name(request.deployment_name)
        settings = api_pb2.EnvironmentSettings(image_builder_version=self.BUILDER)
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id=self._ids[name], metadata=api_pb2.EnvironmentMetadata(name=name, settings=settings)
        )


class Named(Generic[T]):
    """Objects of one kind, by id, and by name in an environment where they have one."""

    def __init__(self, kind: str, prefix: str, environments: Environments) -> None:
        self.kind, self.prefix, self._environments = kind, prefix, environments
        self._objects: dict[str, T] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._created: dict[str, float] = {}

    def __getitem__(self, object_id: str) -> T:
        if object_id not in self._objects:
            raise not_found(f"{self.kind} {object_id}")
        return self._objects[object_id]

    def named(self, name: str, environment: str = "main") -> T:
        """The object a test asks for by name."""
        return self._objects[self._names[environment, name]]

    def get_or_create(self, name: str, environment: str, creation: int, new: T) -> str:
        """The id of the object asked for; `new` becomes it if it is to be created. NOT_FOUND, ALREADY_EXISTS."""
        key = (self._environments.name(environment), name)
        known = self._names.get(key) if name else None
        if known and creation == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"{self.kind} '{name}' already exists.")
        if known and creation != api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS:
            return known
        if not known and creation == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise not_found(f"{self.kind} '{name}' in environment '{key[0]}'")
        id_ = known or new_id(self.prefix)
        self._created.pop(id_, None)
        self.add(id_, new)
        if name:
            self._names[key] = id_
        return id_

    def add(self, id_: str, new: T) -> None:
        self._objects[id_] = new
        self._created.setdefault(id_, time.time())

    def created(self, id_: str) -> api_pb2.CreationInfo:
        return api_pb2.CreationInfo(created_at=self._created[id_], created_by=OWNER)

    def name_of(self, id_: str) -> str:
        return next((name for (_, name), known in self._names.items() if known == id_), "")

    def all(self, environment: str) -> list[tuple[str, str]]:
        """(name, id) of the named ones in an environment."""
        where = self._environments.name(environment)
        return [(name, id_) for (env, name), id_ in self._names.items() if env == where]

    def delete(self, id_: str) -> None:
        self[id_]
        del self._objects[id_]
        self._names = {key: known for key, known in self._names.items() if known != id_}
