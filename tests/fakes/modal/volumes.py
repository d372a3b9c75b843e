"""Volumes of version 2: files are uploaded and read in blocks of 8 MiB, and lie in a folder here."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from urllib.parse import urlencode

from aiohttp import web
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .container import calling
from .lifecycle import Lifecycle
from .objects import Environments, Named, not_found
from .storage import Blobs
from .views import View

BLOCK = 8 * 1024 * 1024
GONE = (0, 0)


@dataclass
class Volume:
    folder: Path

    def path(self, asked: str) -> Path:
        """Where a path of the volume is on this disk. INVALID_ARGUMENT if it leaves the volume."""
        path = PurePosixPath("/") / asked
        if ".." in path.parts:
            raise GRPCError(Status.INVALID_ARGUMENT, f"Invalid path {asked}")
        return self.folder / path.relative_to("/")


class Volumes:
    """modal.Volume."""

    def __init__(self, folder: Path, environments: Environments, blobs: Blobs, lifecycle: Lifecycle) -> None:
        self.folder, self._blobs, self._lifecycle = folder, blobs, lifecycle
        self._volumes: Named[Volume] = Named("Volume", "vo", environments)
        self.commits: list[str] = []  # volume ids, one for each commit by a container
        blobs.app.router.add_put("/block/{sha256}", self._put_block)
        blobs.app.router.add_get("/file", self._get_range)

    def folder_of(self, name: str, environment: str = "main") -> Path:
        """Where a volume's files are."""
        return self._volumes.named(name, environment).folder

    def by_id(self, volume_id: str) -> Volume:
        return self._volumes[volume_id]

    def VolumeGetOrCreate(self, request: api_pb2.VolumeGetOrCreateRequest) -> api_pb2.VolumeGetOrCreateResponse:
        if request.version == api_pb2.VOLUME_FS_VERSION_V1:
            raise GRPCError(Status.UNIMPLEMENTED, "The fake Modal has volumes of version 2 only")
        volume = Volume(
            self.folder / (request.environment_name or "main") / (request.deployment_name or os.urandom(8).hex())
        )
        id_ = self._volumes.get_or_create(
            request.deployment_name, request.environment_name, request.object_creation_type, volume
        )
        self._volumes[id_].folder.mkdir(parents=True, exist_ok=True)
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=id_, version=api_pb2.VOLUME_FS_VERSION_V2, metadata=self.metadata(id_)
        )

    def VolumeList(self, request: api_pb2.VolumeListRequest) -> api_pb2.VolumeListResponse:
        items = [
            api_pb2.VolumeListItem(
                label=name, volume_id=id_, created_at=self._volumes.created(id_).created_at, metadata=self.metadata(id_)
            )
            for name, id_ in self._volumes.all(request.environment_name)
        ]
        return api_pb2.VolumeListResponse(items=items, environment_name=request.environment_name or "main")

    def VolumePutFiles2(self, request: api_pb2.VolumePutFiles2Request) -> api_pb2.VolumePutFiles2Response:
        volume = self._volumes[request.volume_id]
        if request.disallow_overwrite_existing_files:
            there = [file.path for file in request.files if volume.path(file.path).exists()]
            if there:
                raise GRPCError(Status.ALREADY_EXISTS, f"{', '.join(there)}: already exists")
        missing = [
            api_pb2.VolumePutFiles2Response.MissingBlock(
                file_index=i, block_index=j, put_url=f"{self._blobs.url}/block/{block.contents_sha256.hex()}"
            )
            for i, file in enumerate(request.files)
            for j, block in enumerate(file.blocks)
            if not self._blobs.has(block.contents_sha256.hex())
        ]
        if not missing:
            for file in request.files:
                self._assemble(volume.path(file.path), file)
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing)

    def _assemble(self, path: Path, file: api_pb2.VolumePutFiles2Request.File) -> None:
        """The file takes its place whole. A block comes without its trailing zeros."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as out:
            for index, block in enumerate(file.blocks):
                out.seek(index * BLOCK)
                out.write(self._blobs.path(block.contents_sha256.hex()).read_bytes())
            out.truncate(file.size)
        part.chmod(file.mode or 0o644)
        part.replace(path)

    async def _down(self) -> web.Response | None:
        """What is answered instead while the blocks cannot be reached."""
        while self._lifecycle.blocks_down == 0:
            await asyncio.sleep(0.05)
        status = self._lifecycle.blocks_down
        return web.Response(status=status, text="the block store is down") if status else None

    async def _put_block(self, request: web.Request) -> web.Response:
        if down := await self._down():
            return down
        if self._blobs.keep(await request.read()) != request.match_info["sha256"]:
            return web.Response(status=400, text="content is not of this sha256")
        return web.Response(body=b"kept")

    def VolumeGetFile2(self, request: api_pb2.VolumeGetFile2Request) -> api_pb2.VolumeGetFile2Response:
        path = self._volumes[request.volume_id].path(request.path)
        if not path.is_file():
            raise not_found(f"{request.path}: file")
        size = path.stat().st_size
        start = min(request.start, size)
        end = min(start + request.len, size) if request.len else size
        cuts = [start, *range((start // BLOCK + 1) * BLOCK, end, BLOCK), end]
        urls = [
            f"{self._blobs.url}/file?"
            + urlencode({"volume": request.volume_id, "path": request.path, "start": a, "end": b})
            for a, b in pairwise(cuts)
            if b > a
        ]
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=size, start=start, len=end - start)

    async def _get_range(self, request: web.Request) -> web.Response:
        if down := await self._down():
            return down
        asked = request.query
        with self._volumes[asked["volume"]].path(asked["path"]).open("rb") as file:
            file.seek(int(asked["start"]))
            return web.Response(body=file.read(int(asked["end"]) - int(asked["start"])))

    async def VolumeListFiles2(
        self, request: api_pb2.VolumeListFiles2Request
    ) -> AsyncIterator[api_pb2.VolumeListFiles2Response]:
        volume = self._volumes[request.volume_id]
        path = volume.path(request.path)
        if not path.exists():
            raise not_found(f"{request.path}: file or directory")
        yield api_pb2.VolumeListFiles2Response(
            entries=[self._entry(volume, each) for each in self._below(path, request.recursive)]
        )

    def _below(self, path: Path, recursive: bool) -> Iterator[Path]:
        if path.is_file():
            yield path
        else:
            yield from sorted(path.rglob("*") if recursive else path.iterdir())

    def _entry(self, volume: Volume, path: Path) -> api_pb2.FileEntry:
        kind = api_pb2.FileEntry.SYMLINK if path.is_symlink() else api_pb2.FileEntry.FILE
        if path.is_dir() and not path.is_symlink():
            kind = api_pb2.FileEntry.DIRECTORY
        state = path.lstat()
        return api_pb2.FileEntry(
            path=str(path.relative_to(volume.folder)), type=kind, mtime=int(state.st_mtime), size=state.st_size
        )

    def VolumeRemoveFile2(self, request: api_pb2.VolumeRemoveFile2Request) -> None:
        path = self._volumes[request.volume_id].path(request.path)
        if not path.exists():
            raise not_found(f"{request.path}: file or directory")
        if not path.is_dir():
            path.unlink()
        elif request.recursive:
            shutil.rmtree(path)
        else:
            raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path} is a directory: remove it recursively")

    def VolumeCommit(self, request: api_pb2.VolumeCommitRequest) -> api_pb2.VolumeCommitResponse:
        self._view(request.volume_id).commit()
        self.commits.append(request.volume_id)
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    def VolumeReload(self, request: api_pb2.VolumeReloadRequest) -> None:
        view, container = self._view(request.volume_id), calling.get()
        files = {_identity(path) for path in view.folder.rglob("*")} - {GONE}
        if container and files & {_identity(handle) for handle in container.handles()}:
            raise GRPCError(Status.FAILED_PRECONDITION, "there are open files preventing the operation")
        view.reload()

    def _view(self, volume_id: str) -> View:
        container = calling.get()
        if container is None or volume_id not in container.views:
            raise GRPCError(Status.FAILED_PRECONDITION, "A volume is committed and reloaded where it is mounted.")
        return container.views[volume_id]

    def metadata(self, id_: str) -> api_pb2.VolumeMetadata:
        return api_pb2.VolumeMetadata(
            version=api_pb2.VOLUME_FS_VERSION_V2,
            name=self._volumes.name_of(id_),
            creation_info=self._volumes.created(id_),
        )


def _identity(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError:
        return GONE
    return state.st_dev, state.st_ino
