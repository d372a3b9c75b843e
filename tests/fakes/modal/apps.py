"""Apps: deploy, versions, history, rollback, stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import modal
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .objects import OWNER, new_id, not_found

if TYPE_CHECKING:
    from .server import FakeModal


@dataclass(frozen=True)
class Version:
    """One row of an app's history."""

    number: int
    function_ids: dict[str, str]  # by tag
    class_ids: dict[str, str]
    definitions: dict[str, str]  # definition id by function id
    deployed_at: float = field(default_factory=time.time)
    tag: str = ""
    rollback_of: int = 0
    commit: api_pb2.CommitInfo | None = None

    def same_as(self, other: Version) -> bool:
        return (self.function_ids, self.class_ids, self.definitions) == (
            other.function_ids, other.class_ids, other.definitions,
        )  # fmt: skip


@dataclass
class App:
    id: str
    name: str
    environment: str
    state: api_pb2.AppState.ValueType
    tags: dict[str, str] = field(default_factory=dict)
    created_at: float = field(default_factory=time.time)
    stopped_at: float = 0
    versions: list[Version] = field(default_factory=list)

    @property
    def live(self) -> Version | None:
        return self.versions[-1] if self.versions and not self.stopped_at else None

    def lifecycle(self) -> api_pb2.AppLifecycle:
        latest = self.versions[-1] if self.versions else None
        return api_pb2.AppLifecycle(
            app_state=self.state,
            created_at=self.created_at,
            created_by=OWNER,
            deployed_at=latest.deployed_at if latest else 0,
            deployed_by=OWNER if latest else "",
            version=latest.number if latest else 0,
            stopped_at=self.stopped_at,
            stopped_by=OWNER if self.stopped_at else "",
        )


class Apps:
    """modal.App. A stopped app keeps its id; deploying its name again makes a new one."""

    def __init__(self, fake: FakeModal) -> None:
        self._fake = fake
        self._apps: dict[str, App] = {}

    def __getitem__(self, app_id: str) -> App:
        if app_id not in self._apps:
            raise not_found(f"App {app_id}")
        return self._apps[app_id]

    def deployed(self, name: str, environment: str = "main") -> App | None:
        """The app that is deployed under a name."""
        return next((a for a in self._by_name(name, environment) if a.state == api_pb2.APP_STATE_DEPLOYED), None)

    def function(self, app: str, tag: str, environment: str = "main") -> api_pb2.Function:
        """The definition, as it came over the wire, of a function or server of the deployed app."""
        found = self.deployed(app, environment)
        assert found and found.live, f"{app} is not deployed"
        function_id = found.live.function_ids[tag]
        return self._fake.functions.definitions[found.live.definitions[function_id]]

    def _by_name(self, name: str, environment: str) -> list[App]:
        return [a for a in reversed(self._apps.values()) if (a.name, a.environment) == (name, environment)]

    def AppCreate(self, request: api_pb2.AppCreateRequest) -> api_pb2.AppCreateResponse:
        where = self._fake.environments.name(request.environment_name)
        app = App(new_id("ap"), request.description, where, request.app_state, dict(request.tags))
        self._apps[app.id] = app
        url = f"https://modal.com/apps/{app.id}"
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url=url, app_logs_url=f"{url}/logs")

    def AppGetByDeploymentName(
        self, request: api_pb2.AppGetByDeploymentNameRequest
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        where = self._fake.environments.name(request.environment_name)
        app = self.deployed(request.name, where)
        stopped = next((a for a in self._by_name(request.name, where) if a.stopped_at), None)
        either = app or stopped
        return api_pb2.AppGetByDeploymentNameResponse(
            app_id=app.id if app else "",
            previous_app_id=stopped.id if stopped else "",
            environment_name=where,
            lifecycle=either.lifecycle() if either else None,
        )

    def AppGetLayout(self, request: api_pb2.AppGetLayoutRequest) -> api_pb2.AppGetLayoutResponse:
        return api_pb2.AppGetLayoutResponse(app_layout=self.layout(self[request.app_id]))

    def layout(self, app: App) -> api_pb2.AppLayout:
        version = app.live
        if version is None:
            return api_pb2.AppLayout()
        return api_pb2.AppLayout(
            function_ids=version.function_ids,
            class_ids=version.class_ids,
            objects=[
                api_pb2.Object(object_id=id_, function_handle_metadata=self._fake.functions.handle(id_))
                for id_ in version.function_ids.values()
            ],
        )

    def AppHeartbeat(self, _: Message) -> None:
        return None

    def AppPublish(self, request: api_pb2.AppPublishRequest) -> api_pb2.AppPublishResponse:
        app = self[request.app_id]
        app.name = request.name or app.name
        version = Version(
            number=len(app.versions) + 1,
            function_ids=dict(request.function_ids),
            class_ids=dict(request.class_ids),
            definitions=dict(request.definition_ids),
            tag=request.deployment_tag,
            commit=request.commit_info if request.HasField("commit_info") else None,
        )
        if request.app_state == api_pb2.APP_STATE_DEPLOYED and app.live and version.same_as(app.live):
            return api_pb2.AppPublishResponse(url=self._url(app), deployed_at=0)
        app.state = request.app_state
        app.tags = dict(request.tags)
        return self._go_live(app, version)

    def _go_live(self, app: App, version: Version) -> api_pb2.AppPublishResponse:
        """Overrides of the autoscaler are lost; containers of another definition are replaced (see Containers)."""
        app.versions.append(version)
        for function_id in version.function_ids.values():
            self._fake.functions[function_id].override.Clear()
        return api_pb2.AppPublishResponse(url=self._url(app), deployed_at=version.deployed_at)

    def _url(self, app: App) -> str:
        return f"https://modal.com/apps/fake-workspace/{app.environment}/deployed/{app.name}"

    def AppRollback(self, request: api_pb2.AppRollbackRequest) -> api_pb2.AppRollbackResponse:
        app = self[request.app_id]
        number = request.version if request.version > 0 else len(app.versions) - 1
        if not 1 <= number < len(app.versions):
            raise GRPCError(Status.INVALID_ARGUMENT, f"App {app.name} cannot be rolled back to version {number}.")
        earlier = app.versions[number - 1]
        version = replace(earlier, number=len(app.versions) + 1, deployed_at=time.time(), rollback_of=number)
        published = self._go_live(app, version)
        return api_pb2.AppRollbackResponse(url=published.url, deployed_at=published.deployed_at)

    async def AppStop(self, request: api_pb2.AppStopRequest) -> None:
        await self._stop(self[request.app_id])

    async def AppClientDisconnect(self, request: api_pb2.AppClientDisconnectRequest) -> None:
        """Ends an app that lives as long as its client, and one whose deploy failed; a deployed one goes on."""
        app = self[request.app_id]
        if app.state in (api_pb2.APP_STATE_INITIALIZING, api_pb2.APP_STATE_EPHEMERAL):
            await self._stop(app)

    async def _stop(self, app: App) -> None:
        app.state, app.stopped_at = api_pb2.APP_STATE_STOPPED, time.time()
        await self._fake.containers.stop_all(app.id)

    def AppList(self, request: api_pb2.AppListRequest) -> api_pb2.AppListResponse:
        where = self._fake.environments.name(request.environment_name)
        return api_pb2.AppListResponse(
            apps=[
                api_pb2.AppListResponse.AppListItem(
                    app_id=app.id,
                    description=app.name,
                    name=app.name,
                    state=app.state,
                    created_at=app.created_at,
                    stopped_at=app.stopped_at,
                    n_running_tasks=len(self._fake.containers.live(app_id=app.id)),
                )
                for app in self._apps.values()
                if app.environment == where
            ]
        )

    def AppDeploymentHistory(
        self, request: api_pb2.AppDeploymentHistoryRequest
    ) -> api_pb2.AppDeploymentHistoryResponse:
        app = self[request.app_id]
        rows = [
            api_pb2.AppDeploymentHistory(
                app_id=app.id,
                version=version.number,
                client_version=modal.__version__,
                deployed_at=version.deployed_at,
                deployed_by=OWNER,
                tag=version.tag,
                rollback_version=version.rollback_of,
                rollback_allowed=True,
                commit_info=version.commit,
            )
            for version in reversed(app.versions)
        ]
        return api_pb2.AppDeploymentHistoryResponse(app_deployment_histories=rows)

    def AppGetLifecycle(self, request: api_pb2.AppGetLifecycleRequest) -> api_pb2.AppGetLifecycleResponse:
        return api_pb2.AppGetLifecycleResponse(lifecycle=self[request.app_id].lifecycle())

    def AppGetInfo(self, request: api_pb2.AppGetInfoRequest) -> api_pb2.AppGetInfoResponse:
        return api_pb2.AppGetInfoResponse(info=self._handle(self[request.app_id]))

    def AppGetOrCreate(self, request: api_pb2.AppGetOrCreateRequest) -> api_pb2.AppGetOrCreateResponse:
        where = self._fake.environments.name(request.environment_name)
        app = self._apps.get(request.app_name) or self.deployed(request.app_name, where)
        if app is None and request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
            app = App(new_id("ap"), request.app_name, where, api_pb2.APP_STATE_DEPLOYED)
            self._apps[app.id] = app
        if app is None:
            raise not_found(f"App '{request.app_name}' in environment '{where}'")
        return api_pb2.AppGetOrCreateResponse(app_id=app.id, handle_metadata=self._handle(app))

    def _handle(self, app: App) -> api_pb2.AppHandleMetadata:
        tags = app.live.function_ids if app.live else {}
        servers = {tag: id_ for tag, id_ in tags.items() if self._fake.functions[id_].url}
        return api_pb2.AppHandleMetadata(
            app_id=app.id,
            description=app.name,
            environment_name=app.environment,
            lifecycle=app.lifecycle(),
            functions={tag: id_ for tag, id_ in tags.items() if tag not in servers},
            servers=servers,
        )
