"""Images: each definition is kept as it came; building one is its log lines and an answer."""

from __future__ import annotations

import shlex
import time
from collections.abc import AsyncIterator

from google.protobuf.message import Message
from modal_proto import api_pb2

from .objects import Environments, id_of, wire

SUCCESS = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)


class Images:
    """modal.Image. An id is the hash of a definition, so what was built once is not built again."""

    def __init__(self) -> None:
        self.definitions: dict[str, api_pb2.Image] = {}
        self._results: dict[str, api_pb2.GenericResult] = {}
        self._failing: dict[str, list[str]] = {}

    def fail_builds(self, command: str, log: list[str]) -> None:
        """From now on, an image with a build command that contains `command` fails after these log lines."""
        self._failing[command] = log

    def mend_builds(self) -> None:
        self._failing.clear()

    def layers(self, image_id: str) -> list[api_pb2.Image]:
        """The definitions that an image is made of, from its base up."""
        image = self.definitions[image_id]
        return [layer for base in image.base_images for layer in self.layers(base.image_id)] + [image]

    def commands(self, image_id: str) -> list[str]:
        """All build commands of an image, from its base up."""
        return [command for layer in self.layers(image_id) for command in layer.dockerfile_commands]

    def environment(self, image_id: str) -> dict[str, str]:
        """What its ENV commands set, in the form that `Image.env` writes them."""
        commands = [c.removeprefix("ENV ") for c in self.commands(image_id) if c.startswith("ENV ")]
        return dict(word.split("=", 1) for command in commands for word in shlex.split(command) if "=" in word)

    def ImageGetOrCreate(self, request: api_pb2.ImageGetOrCreateRequest) -> api_pb2.ImageGetOrCreateResponse:
        image_id = id_of("im", wire(request.image))
        self.definitions[image_id] = request.image
        built = None if request.force_build else self._results.get(image_id)
        return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=built, metadata=self._metadata())

    async def ImageJoinStreaming(
        self, request: api_pb2.ImageJoinStreamingRequest
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        image_id = request.image_id
        commands = self.definitions[image_id].dockerfile_commands
        lines = next((log for bad, log in self._failing.items() if any(bad in c for c in commands)), None)
        result = SUCCESS
        if lines is not None:
            result = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE)
        else:
            self._results[image_id] = result
        logs = [
            api_pb2.TaskLogs(data=f"{line}\n", timestamp=time.time(), file_descriptor=api_pb2.FILE_DESCRIPTOR_STDOUT)
            for line in lines or [f"=> {command}" for command in commands]
        ]
        yield api_pb2.ImageJoinStreamingResponse(task_logs=logs, entry_id="1-0")
        yield api_pb2.ImageJoinStreamingResponse(result=result, entry_id="2-0", eof=True, metadata=self._metadata())

    def _metadata(self, _: Message | None = None) -> api_pb2.ImageMetadata:
        return api_pb2.ImageMetadata(
            image_builder_version=Environments.BUILDER, python_version_info="3.12.1", workdir="/root"
        )
