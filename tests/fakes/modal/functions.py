"""Functions and servers: their definitions, calls and results, and what their autoscaler is told."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .objects import id_of, new_id, not_found, wire

if TYPE_CHECKING:
    from .container import Container
    from .server import FakeModal

Result = api_pb2.GenericResult


@dataclass
class Service:
    """A function or a server of an app, through all its definitions."""

    id: str
    app_id: str
    name: str
    definition_id: str = ""  # the latest created, live once an app version names it
    url: str = ""  # of a server
    override: api_pb2.AutoscalerSettings = field(default_factory=api_pb2.AutoscalerSettings)
    handle: api_pb2.FunctionHandleMetadata = field(default_factory=api_pb2.FunctionHandleMetadata)


@dataclass
class Input:
    """One call's input, until its output is there."""

    id: str
    call_id: str
    service: Service
    index: int
    message: api_pb2.FunctionInput
    invocation: api_pb2.FunctionCallInvocationType.ValueType
    container: Container | None = None  # that works on it
    started_at: float = 0
    attempts: int = 0
    output: api_pb2.FunctionGetOutputsItem | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def finish(
        self, result: api_pb2.GenericResult, format: api_pb2.DataFormat.ValueType = api_pb2.DATA_FORMAT_PICKLE
    ) -> None:
        if self.output is None:
            self.output = api_pb2.FunctionGetOutputsItem(
                result=result,
                idx=self.index,
                input_id=self.id,
                data_format=format,
                task_id=self.container.task_id if self.container else "",
                input_started_at=self.started_at,
                output_created_at=time.time(),
            )
        self.container = None
        self.done.set()


class Functions:
    """modal.Function, modal.FunctionCall, and what modal.Server shares with them."""

    def __init__(self, fake: FakeModal) -> None:
        self._fake = fake
        self._services: dict[str, Service] = {}
        self.definitions: dict[str, api_pb2.Function] = {}  # by definition id, which is a hash of it
        self._calls: dict[str, list[Input]] = {}

    def __getitem__(self, function_id: str) -> Service:
        if function_id not in self._services:
            raise not_found(f"Function {function_id}")
        return self._services[function_id]

    def all(self) -> list[Service]:
        return list(self._services.values())

    def live_definition(self, service: Service) -> str:
        """The definition id that the app's live version has for it; empty if it is not deployed any more."""
        version = self._fake.apps[service.app_id].live
        return version.definitions.get(service.id, "") if version else ""

    def settings(self, service: Service) -> api_pb2.AutoscalerSettings:
        """What the autoscaler goes by: the definition's settings, overridden."""
        merged = api_pb2.AutoscalerSettings()
        merged.CopyFrom(self.definitions[self.live_definition(service) or service.definition_id].autoscaler_settings)
        merged.MergeFrom(service.override)
        return merged

    def handle(self, function_id: str) -> api_pb2.FunctionHandleMetadata:
        return self[function_id].handle

    # Deploying

    def FunctionPrecreate(self, request: api_pb2.FunctionPrecreateRequest) -> api_pb2.FunctionPrecreateResponse:
        id_ = request.existing_function_id or new_id("fu")
        service = self._services.setdefault(id_, Service(id_, request.app_id, request.function_name))
        handle = api_pb2.FunctionHandleMetadata(
            function_name=request.function_name,
            function_type=request.function_type,
            app_id=request.app_id,
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
        )
        if not service.handle.function_name:
            service.handle = handle
        return api_pb2.FunctionPrecreateResponse(function_id=id_, handle_metadata=handle)

    async def FunctionCreate(self, request: api_pb2.FunctionCreateRequest) -> api_pb2.FunctionCreateResponse:
        definition = request.function
        if request.HasField("function_data"):  # one definition for each GPU type that will do
            definition = request.function_data.ranked_functions[0].function
        if (
            definition.is_builder_function
            or definition.webhook_config.type
            or definition.is_class > definition.is_server
        ):
            raise GRPCError(Status.UNIMPLEMENTED, "The fake Modal has plain functions and servers only")
        mounts = sorted(definition.mount_ids)  # the SDK sends a set
        del definition.mount_ids[:]
        definition.mount_ids.extend(mounts)
        service = self[request.existing_function_id]
        service.definition_id = id_of("de", wire(definition))
        self.definitions[service.definition_id] = definition
        if definition.is_server and not service.url:
            service.url = await self._fake.serving.open(service)
        service.handle.definition_id = service.definition_id
        if service.url:
            service.handle._experimental_flash_urls[:] = [service.url]
        return api_pb2.FunctionCreateResponse(
            function_id=service.id,
            function=definition,
            handle_metadata=service.handle,
            function_data=self._data(service, definition),
        )

    def _data(self, service: Service, definition: api_pb2.Function) -> api_pb2.FunctionData:
        return api_pb2.FunctionData(
            module_name=definition.module_name,
            function_name=definition.function_name,
            implementation_name=definition.implementation_name,
            function_type=definition.function_type,
            timeout_secs=definition.timeout_secs,
            autoscaler_settings=definition.autoscaler_settings,
            http_config=definition.http_config if definition.HasField("http_config") else None,
            is_server=definition.is_server,
            flash_service_urls=[service.url] if service.url else [],
            ranked_functions=[api_pb2.FunctionData.RankedFunction(rank=0, function=definition)],
        )

    def FunctionGet(self, request: api_pb2.FunctionGetRequest) -> api_pb2.FunctionGetResponse:
        app = self._fake.apps.deployed(request.app_name, self._fake.environments.name(request.environment_name))
        if app is None or app.live is None:
            raise not_found(f"App '{request.app_name}'")
        if request.object_tag not in app.live.function_ids:
            raise not_found(f"Function '{request.object_tag}' in app '{request.app_name}'")
        service = self[app.live.function_ids[request.object_tag]]
        data = self._data(service, self.definitions[app.live.definitions[service.id]])
        return api_pb2.FunctionGetResponse(function_id=service.id, handle_metadata=service.handle, function=data)

    def FunctionGetById(self, request: api_pb2.FunctionGetByIdRequest) -> api_pb2.FunctionGetByIdResponse:
        service = self[request.function_id]
        definition = self.definitions[self.live_definition(service) or service.definition_id]
        return api_pb2.FunctionGetByIdResponse(function=self._data(service, definition), handle_metadata=service.handle)

    # Scaling

    def FunctionGetCurrentStats(self, request: api_pb2.FunctionGetCurrentStatsRequest) -> api_pb2.FunctionStats:
        service = self[request.function_id]
        containers = self._fake.containers.live(service)
        return api_pb2.FunctionStats(
            backlog=len(self.waiting(service)),
            num_total_tasks=len(containers),
            num_running_inputs=sum(c.in_flight for c in containers) + len(self._running(service)),
        )

    def FunctionGetSchedulingParams(
        self, request: api_pb2.FunctionGetSchedulingParamsRequest
    ) -> api_pb2.FunctionGetSchedulingParamsResponse:
        service = self[request.function_id]
        configuration = api_pb2.AutoscalerConfiguration(
            settings=self.settings(service), override_settings=service.override
        )
        return api_pb2.FunctionGetSchedulingParamsResponse(autoscaler_configuration=configuration)

    def FunctionUpdateSchedulingParams(
        self, request: api_pb2.FunctionUpdateSchedulingParamsRequest
    ) -> api_pb2.FunctionUpdateSchedulingParamsResponse:
        service = self[request.function_id]
        service.override.MergeFrom(request.settings)
        return api_pb2.FunctionUpdateSchedulingParamsResponse(current_settings=self.settings(service))

    # Calls, from the client's side

    def FunctionMap(self, request: api_pb2.FunctionMapRequest) -> api_pb2.FunctionMapResponse:
        if request.function_call_type != api_pb2.FUNCTION_CALL_TYPE_UNARY:
            raise GRPCError(Status.UNIMPLEMENTED, "The fake Modal has calls of one input only")
        service = self[request.function_id]
        if not self.live_definition(service):
            raise GRPCError(Status.FAILED_PRECONDITION, f"Function {service.name} is of an app that is stopped.")
        call_id = new_id("fc")
        self._calls[call_id] = [
            Input(new_id("in"), call_id, service, item.idx, item.input, request.function_call_invocation_type)
            for item in request.pipelined_inputs
        ]
        return api_pb2.FunctionMapResponse(
            function_call_id=call_id,
            pipelined_inputs=[
                api_pb2.FunctionPutInputsResponseItem(idx=i.index, input_id=i.id, input_jwt=i.id)
                for i in self._calls[call_id]
            ],
        )

    async def FunctionGetOutputs(
        self, request: api_pb2.FunctionGetOutputsRequest
    ) -> api_pb2.FunctionGetOutputsResponse:
        inputs = self._call(request.function_call_id)
        if inputs and request.timeout and not inputs[0].output:
            waiting = asyncio.ensure_future(inputs[0].done.wait())
            await asyncio.wait([waiting], timeout=request.timeout)
            waiting.cancel()
        outputs = [i.output for i in inputs if i.output]
        return api_pb2.FunctionGetOutputsResponse(
            outputs=outputs, idxs=[o.idx for o in outputs], num_unfinished_inputs=len(inputs) - len(outputs)
        )

    def FunctionCallFromId(self, request: api_pb2.FunctionCallFromIdRequest) -> api_pb2.FunctionCallFromIdResponse:
        inputs = self._call(request.function_call_id)
        service = inputs[0].service
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=request.function_call_id,
            num_inputs=len(inputs),
            metadata=api_pb2.FunctionCallHandleMetadata(app_id=service.app_id, function_id=service.id),
        )

    async def FunctionCallCancel(self, request: api_pb2.FunctionCallCancelRequest) -> None:
        for one in self._call(request.function_call_id):
            container = one.container
            if container is None or request.terminate_containers:
                one.finish(Result(status=Result.GENERIC_STATUS_TERMINATED, exception="Input was cancelled by user"))
            else:
                container.cancelled.append(one.id)
            if container and request.terminate_containers:
                await self._fake.containers.stop(container)

    def _call(self, call_id: str) -> list[Input]:
        if call_id not in self._calls:
            raise not_found(f"FunctionCall {call_id}")
        return self._calls[call_id]

    # Calls, from the container's side

    def waiting(self, service: Service) -> list[Input]:
        return [i for i in self._inputs(service) if i.container is None]

    def _running(self, service: Service) -> list[Input]:
        return [i for i in self._inputs(service) if i.container is not None]

    def running_on(self, container: Container) -> Input | None:
        return next((i for i in self._running(container.service) if i.container is container), None)

    def _inputs(self, service: Service) -> list[Input]:
        """Those that have no output yet."""
        return [i for inputs in self._calls.values() for i in inputs if i.service is service and not i.output]

    def lost(self, container: Container, result: api_pb2.GenericResult | None) -> None:
        """The container is gone: the input it worked on gets `result`, or goes to another container without one."""
        one = self.running_on(container)
        if one and result is not None:
            one.finish(result)
        elif one:
            one.container = None

    def take(self, container: Container) -> Input | None:
        """The next input for a container, which now works on it."""
        one = next(iter(self.waiting(container.service)), None)
        if one:
            one.container, one.started_at, one.attempts = container, time.time(), one.attempts + 1
        return one

    def FunctionPutOutputs(self, request: api_pb2.FunctionPutOutputsRequest) -> None:
        by_id = {i.id: i for inputs in self._calls.values() for i in inputs}
        for item in request.outputs:
            by_id[item.input_id].finish(item.result, item.data_format)
