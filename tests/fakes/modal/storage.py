"""Blobs, dicts, secrets, and mounts (the source files that a deploy uploads)."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .objects import Environments, Named, id_of, new_id, not_found, wire


class Blobs:
    """Content by its sha256, and the HTTP server that the addresses in answers point to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._uploads: dict[str, bytes] = {}
        self.app = web.Application(client_max_size=2**30)
        self.app.router.add_put("/blob/{id}", self._put)
        self.app.router.add_get("/blob/{id}", self._get)
        self.url = ""

    async def start(self) -> None:
        self._runner = web.AppRunner(self.app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        await self._runner.cleanup()

    def has(self, sha256: str) -> bool:
        return (self.folder / sha256).exists()

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def keep(self, content: bytes) -> str:
        """The sha256 under which the content now is."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.path(sha256).write_bytes(content)
        return sha256

    def uploaded(self, blob_id: str) -> bytes:
        if blob_id not in self._uploads:
            raise not_found(f"Blob {blob_id}")
        return self._uploads[blob_id]

    def BlobCreate(self, _: Message) -> api_pb2.BlobCreateResponse:
        blob_id = new_id("bl")
        urls = api_pb2.UploadUrlList(items=[f"{self.url}/blob/{blob_id}"])
        return api_pb2.BlobCreateResponse(blob_ids=[blob_id], upload_urls=urls)

    def BlobGet(self, request: api_pb2.BlobGetRequest) -> api_pb2.BlobGetResponse:
        self.uploaded(request.blob_id)
        return api_pb2.BlobGetResponse(download_url=f"{self.url}/blob/{request.blob_id}")

    async def _put(self, request: web.Request) -> web.Response:
        content = await request.read()
        self._uploads[request.match_info["id"]] = content
        return web.Response(headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    async def _get(self, request: web.Request) -> web.Response:
        return web.Response(body=self._uploads[request.match_info["id"]])


class Dicts:
    """modal.Dict: keys and values stay the bytes that the client pickled."""

    def __init__(self, environments: Environments) -> None:
        self._dicts: Named[dict[bytes, bytes]] = Named("Dict", "di", environments)

    def contents(self, name: str, environment: str = "main") -> dict[Any, Any]:
        return {pickle.loads(k): pickle.loads(v) for k, v in self._dicts.named(name, environment).items()}

    def DictGetOrCreate(self, request: api_pb2.DictGetOrCreateRequest) -> api_pb2.DictGetOrCreateResponse:
        new = {entry.key: entry.value for entry in request.data}
        id_ = self._dicts.get_or_create(
            request.deployment_name, request.environment_name, request.object_creation_type, new
        )
        metadata = api_pb2.DictMetadata(name=request.deployment_name, creation_info=self._dicts.created(id_))
        return api_pb2.DictGetOrCreateResponse(dict_id=id_, metadata=metadata)

    def DictUpdate(self, request: api_pb2.DictUpdateRequest) -> api_pb2.DictUpdateResponse:
        contents = self._dicts[request.dict_id]
        created = [e for e in request.updates if not (request.if_not_exists and e.key in contents)]
        contents.update({entry.key: entry.value for entry in created})
        return api_pb2.DictUpdateResponse(created=bool(created))

    def DictGet(self, request: api_pb2.DictGetRequest) -> api_pb2.DictGetResponse:
        value = self._dicts[request.dict_id].get(request.key)
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    def DictPop(self, request: api_pb2.DictPopRequest) -> api_pb2.DictPopResponse:
        value = self._dicts[request.dict_id].pop(request.key, None)
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    def DictLen(self, request: api_pb2.DictLenRequest) -> api_pb2.DictLenResponse:
        return api_pb2.DictLenResponse(len=len(self._dicts[request.dict_id]))

    def DictContains(self, request: api_pb2.DictContainsRequest) -> api_pb2.DictContainsResponse:
        return api_pb2.DictContainsResponse(found=request.key in self._dicts[request.dict_id])

    def DictClear(self, request: api_pb2.DictClearRequest) -> None:
        self._dicts[request.dict_id].clear()

    def DictDelete(self, request: api_pb2.DictDeleteRequest) -> None:
        self._dicts.delete(request.dict_id)

    async def DictContents(self, request: api_pb2.DictContentsRequest) -> AsyncIterator[api_pb2.DictEntry]:
        for key, value in list(self._dicts[request.dict_id].items()):
            yield api_pb2.DictEntry(key=key if request.keys else b"", value=value if request.values else b"")


class Secrets:
    """modal.Secret. One made of a dict in code has its content as identity, so that deploying it again is no change."""

    def __init__(self, environments: Environments) -> None:
        self._secrets: Named[dict[str, str]] = Named("Secret", "st", environments)

    def values(self, secret_id: str) -> dict[str, str]:
        return self._secrets[secret_id]

    def SecretGetOrCreate(self, request: api_pb2.SecretGetOrCreateRequest) -> api_pb2.SecretGetOrCreateResponse:
        new = dict(request.env_dict)
        if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP:
            id_ = id_of("st", repr(sorted(new.items())).encode())
            self._secrets.add(id_, new)
        else:
            id_ = self._secrets.get_or_create(
                request.deployment_name, request.environment_name, request.object_creation_type, new
            )
        missing = sorted(set(request.required_keys) - set(self._secrets[id_]))
        if missing:
            raise GRPCError(
                Status.NOT_FOUND, f"Secret '{request.deployment_name}' is missing key(s): {', '.join(missing)}"
            )
        return api_pb2.SecretGetOrCreateResponse(secret_id=id_, metadata=self._metadata(id_))

    def SecretGetInfo(self, request: api_pb2.SecretGetInfoRequest) -> api_pb2.SecretGetInfoResponse:
        return api_pb2.SecretGetInfoResponse(metadata=self._metadata(request.secret_id))

    def SecretUpdate(self, request: api_pb2.SecretUpdateRequest) -> None:
        values = self._secrets[request.secret_id]
        for update in request.updates:
            if update.HasField("value"):
                values[update.key] = update.value
            else:
                values.pop(update.key, None)

    def SecretList(self, request: api_pb2.SecretListRequest) -> api_pb2.SecretListResponse:
        where = request.environment_name or "main"
        items = [
            api_pb2.SecretListItem(
                label=name,
                secret_id=id_,
                environment_name=where,
                created_at=self._secrets.created(id_).created_at,
                metadata=self._metadata(id_),
            )
            for name, id_ in self._secrets.all(where)
        ]
        return api_pb2.SecretListResponse(items=items, environment_name=where)

    def _metadata(self, id_: str) -> api_pb2.SecretMetadata:
        return api_pb2.SecretMetadata(
            name=self._secrets.name_of(id_), creation_info=self._secrets.created(id_), keys=sorted(self._secrets[id_])
        )


@dataclass
class Mounts:
    """Uploaded source files. A mount's id is its content. Modal's own (client, standalone Python) are empty here."""

    blobs: Blobs
    files: dict[str, list[api_pb2.MountFile]] = field(default_factory=dict)  # by mount id

    def MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = [sha for sha in request.sha256_hex_hashes if not self.blobs.has(sha)]
        answer = api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)
        answer.checked_at.FromNanoseconds(time.time_ns())
        return answer

    def MountPutFile(self, request: api_pb2.MountPutFileRequest) -> api_pb2.MountPutFileResponse:
        # an empty file comes as empty data: the field that is set tells it from a question
        given = request.WhichOneof("data_oneof")
        if given:
            content = request.data if given == "data" else self.blobs.uploaded(request.data_blob_id)
            if self.blobs.keep(content) != request.sha256_hex:
                raise GRPCError(Status.INVALID_ARGUMENT, f"Content is not of sha256 {request.sha256_hex}")
        return api_pb2.MountPutFileResponse(exists=self.blobs.has(request.sha256_hex))

    def MountGetOrCreate(self, request: api_pb2.MountGetOrCreateRequest) -> api_pb2.MountGetOrCreateResponse:
        if request.namespace == api_pb2.DEPLOYMENT_NAMESPACE_GLOBAL:
            content = request.deployment_name.encode()
        elif request.deployment_name:
            raise not_found(f"Mount '{request.deployment_name}'")
        else:
            content = b"".join(sorted(wire(file) for file in request.files))
        mount_id = id_of("mo", content)
        self.files[mount_id] = list(request.files)
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex=hashlib.sha256(content).hexdigest())
        return api_pb2.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=metadata)
