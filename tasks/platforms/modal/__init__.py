"""The Modal platform: a stage is an app, its binary an immutable folder on a Volume, its containers from a snapshot."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import httpx
import modal
from modal.exception import NotFoundError
from pydantic import Field

from modal_app.deployment import Deployment, FileRef
from modal_app.server import KEY
from modal_app.warmup import Golden
from tasks import runbook
from tasks.faults import Fault
from tasks.platforms import Progress, Sight
from tasks.platforms.modal import apps, building, cost
from tasks.platforms.modal.account import command, told
from tasks.platforms.modal.store import VolumeStore
from tasks.platforms.modal.tools import DEPLOY_LIMIT_S, Tools, code_digest
from tasks.release import (
    BadInput,
    BootKind,
    BootRecord,
    Build,
    Endpoint,
    Model,
    Problem,
    Recipe,
    Release,
    SourceTree,
    StageName,
    ToolingError,
    digest_of,
)
from tasks.settings import Settings
from tasks.store import Store

POLL_S = 0.5
DRAIN_LIMIT_S = 120.0
IDLE_LIMIT_S = 120.0
Served = Literal["staging", "production", "trial"]


class Deployed(Model):
    """What we deployed to a stage last: deployments/<stage>.json in the store."""

    release: str
    generation: str = ""
    definition: str
    version: int
    key: str = Field(description="tells the API key that its snapshot knows from another one")


class ModalPlatform:
    """Implements tasks.platforms.Platform."""

    name = "modal"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._modal = settings.modal
        self._tools = Tools(settings.modal)
        self.on_volume = VolumeStore(settings.store, settings.cache, settings.modal, self._tools)
        self.store: Store = self.on_volume
        self._trials: dict[str, str] = {}
        """Address of a trial's server -> its app."""

    def build(self, source: SourceTree, recipe: Recipe, progress: Progress) -> Build:
        """The build of this source tree: made in Modal, or taken from the store.

        Raises ReleaseFailed when it won't compile or the runtime image lacks a library, ToolingError when Modal
        could not do it.
        """
        return building.build(source, recipe, self.on_volume, self._tools, self.settings, progress)

    def built(self, source: SourceTree, recipe: Recipe) -> Build | None:
        """The finished build that `build` would reuse, if there is one."""
        return building.finished(source, recipe, self.on_volume, self._modal)

    def avoids(self, recipe: Recipe) -> tuple[Fault, ...]:
        """The known faults that a build of this recipe would have on Modal, and is kept from."""
        return building.striking(recipe, self._modal)

    @contextmanager
    def trial(self, release: Release, *, wait: bool = True) -> Iterator[Endpoint]:
        """An app of its own with a random key and without a snapshot, stopped on exit.

        Left over by a killed process, it costs nothing once it is idle; `llama-release doctor` names it.
        Raises `runbook.failure` of the server's own words when it doesn't come up.
        """
        key = secrets.token_urlsafe(32)
        name = f"{self._modal.app}-trial-{secrets.token_hex(4)}"
        deployment = self._deployment("trial", name, release, wait=wait)
        try:
            self._deploy(deployment, {KEY: key})
            endpoint = self._await(deployment, key, known=set())
            self._trials[endpoint.base_url] = name
            yield endpoint
        finally:
            apps.stop(self._modal, name)
            with told("removing a trial's boot records"), suppress(NotFoundError):
                modal.Dict.objects.delete(f"{name}-boots", environment_name=self._modal.environment)

    def said(self, trial: Endpoint) -> str:
        """What the server of a trial has written to its log, as far as Modal has it yet."""
        return apps.said(self._modal, self._trials[trial.base_url])

    def inherits(self) -> tuple[str, ...]:
        """None of this process's environment variables reaches a container."""
        return ()

    def deploy(
        self,
        stage: StageName,
        release: Release,
        check: Callable[[Endpoint], object],
        *,
        generation: str = "",
        at_once: bool = False,
    ) -> Endpoint:
        """The stage serves this release from now on; nothing happens when it does already, with the same key and
        generation.

        `check` runs against a trial of the release before production moves (staging has no traffic to protect; and not
        `at_once`, as a trial takes a GPU container of its own), and against the stage itself after it did; what it
        raises leaves the stage as it was, by a redeploy if need be.
        """
        self.store.save_release(release)
        deployment = self._deployment(stage, self._modal.stage_app(stage), release, generation=generation)
        before = self.deployed(stage)
        if before and before.definition == self._definition(deployment):
            return self.endpoint(stage)
        if not at_once and (lost := self.store.lost(release)):
            raise ToolingError(
                f"{release.label} is not whole in the store", evidence=", ".join(lost), todo="build it again"
            )
        if stage == "production" and not at_once:
            with self.trial(release) as endpoint:
                check(endpoint)
        known = set(apps.boots(deployment))
        running = {each.id for each in apps.containers(self._modal, deployment.name)}
        try:
            changed = self._deploy(deployment)
            endpoint = self._await(deployment, self._key, known if changed else None)
            if changed:
                apps.drain(self._modal, deployment.name, running, DRAIN_LIMIT_S)
            check(endpoint)
        except BaseException:
            pointer = self.store.pointer(stage)
            self._back_to(
                stage,
                *(before.release, before.generation)
                if before
                else (pointer.release, pointer.generation(pointer.release)),
            )
            raise
        self._remember(stage, deployment)
        return endpoint

    def serving(self, stage: StageName) -> tuple[str, str] | None:
        """(release id, generation) that we deployed, when Modal still has that very version; else None."""
        known = self.deployed(stage)
        return (known.release, known.generation) if known else None

    def endpoint(self, stage: StageName) -> Endpoint:
        """Where the stage answers. Raises BadInput when it serves nothing."""
        url = apps.url(self._modal, self._modal.stage_app(stage))
        if url is None:
            raise BadInput(
                f"{stage} serves nothing",
                evidence=f"no app {self._modal.stage_app(stage)} is deployed",
                todo="deploy a release to it",
            )
        return Endpoint(base_url=url, api_key=self._key)

    def idle(self, stage: StageName) -> int:
        """Force the idle window and undo what forced it; how many containers are left (0 is the goal).

        Production has clients, and a container that is stopped breaks off what it streams: it is only left to scale
        down by itself, which it does at once when nothing is asked of it.
        """
        name = self._modal.stage_app(stage)
        if apps.url(self._modal, name) is None:
            return 0
        with apps.no_spare_containers(self._modal, name):
            deadline = time.monotonic() + IDLE_LIMIT_S
            while (running := apps.containers(self._modal, name)) and time.monotonic() < deadline:
                for container in running if stage == "staging" else ():
                    apps.stop_container(container.id)
                time.sleep(POLL_S)
            return len(running)

    def rest(self, stage: StageName, since: Sight) -> None:
        """Nothing: Modal does not tell whether a user asked something, and scales down by itself after modal.idle_s."""

    def stop(self, stage: StageName) -> None:
        """The stage serves nothing from now on. Nothing happens when it does not."""
        apps.stop(self._modal, self._modal.stage_app(stage))
        self.store.files.remove(_path(stage))

    def boots(self, stage: StageName) -> list[BootRecord]:
        """Boot records of the stage, oldest first, as its containers wrote them; Modal keeps them for a week."""
        found = apps.boots_of(self._modal, self._modal.stage_app(stage))
        return [BootRecord.model_validate_json(found[key]) for key in sorted(found)]

    def sight(self, stage: StageName) -> Sight:
        """How many containers are up. Modal tells nothing of their requests, and any request to one counts as use."""
        app = self._modal.stage_app(stage)
        down = "" if apps.version(self._modal, app) is not None else f"the app {app} is not deployed"
        return Sight(servers=len(apps.containers(self._modal, app)), down=down)

    def revive(self, _stage: StageName) -> str:
        """Nothing: Modal keeps what is deployed, and what is not was stopped by somebody."""
        return ""

    def golden(self, stage: StageName, snapshot: str | None = None) -> Golden | None:
        """What the stage's server answered before its snapshot was taken: this one, or that of the container that came
        up last."""
        with told(f"reading the golden answers of {stage}"):
            kept = modal.Dict.from_name(
                f"{self._modal.stage_app(stage)}-golden",
                environment_name=self._modal.environment, create_if_missing=True,
            ).get(snapshot or stage)  # fmt: skip
        return Golden.from_json(kept) if kept else None

    def costs(self, release: Release) -> list[cost.Cost]:
        """What a release has cost so far, by stage."""
        return cost.costs(release.id, self.store.build(release.build), cost.uses(self._modal), self._modal)

    def logs(self, stage: StageName) -> Path:
        """The last lines of the stage's log, fetched into a file of this machine."""
        path = self.store.root / "run" / stage / "modal.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(apps.logs(self._modal, self._modal.stage_app(stage)))
        return path

    @property
    def _key(self) -> str:
        """The API key of the stages. Raises BadInput when it is not set: they are reachable from everywhere."""
        if self.settings.api_key is None:
            raise BadInput(
                "the servers on Modal have an API key, and it is not known here",
                evidence=f"{self.settings.server.api_key_env} is not set",
                todo=f"set {self.settings.server.api_key_env} to the key in the Modal Secret {self._modal.secret}",
            )
        return self.settings.api_key.get_secret_value()

    @property
    def key_mark(self) -> str:
        """8 hex characters that tell the API key from another one, and tell nothing else of it."""
        return digest_of(["key", self._key])[:8]

    # -- deployments ----------------------------------------------------------------------------------------

    def _deployment(
        self, stage: Served, name: str, release: Release, *, generation: str = "", wait: bool = True
    ) -> Deployment:
        build = self.store.build(release.build)
        if build is None:
            raise ToolingError(
                f"the build of {release.label} is not in the store",
                evidence=f"builds/{release.build}/manifest.json",
                todo="build it again: llama-release upgrade",
            )
        small = (
            sum(ref.size_bytes for name, ref in release.files.items() if name.startswith("model"))
            <= self._modal.cpu_trial_mb * 1_000_000
        )
        on_cpu = build.recipe.backend == "cpu" or (stage == "trial" and small)
        return Deployment(
            stage=stage, name=name, release=release.id, generation=generation, build=release.build, argv=release.argv,
            env=release.env,
            files={each: FileRef(name=ref.name, sha256=ref.sha256) for each, ref in release.files.items()},
            gpu=None if on_cpu else self._modal.gpu, wait=wait, settings=self._modal,
            key="" if stage == "trial" else self.key_mark,
        )  # fmt: skip

    def _deploy(self, deployment: Deployment, env: dict[str, str] | None = None) -> bool:
        """Deploy it; whether that made a new version. Modal skips what is deployed already."""
        before = apps.version(self._modal, deployment.name)
        command(
            "deploy", "-m", "modal_app.app", "--name", deployment.name, "--tag", deployment.release,
            environment=self._modal.environment, env={**deployment.baked(), **(env or {})},
            limit_s=DEPLOY_LIMIT_S,
        )  # fmt: skip
        after = apps.version(self._modal, deployment.name)
        if after is None:
            raise ToolingError(f"Modal does not have {deployment.name} deployed", todo="run it again")
        return after != before

    def _await(self, deployment: Deployment, key: str, known: set[str] | None) -> Endpoint:
        """The endpoint, once a container said that it is up in a boot record that is not among the known ones.

        With None, any container will do: nothing was deployed, so there is no other. Requests make Modal start one.
        Raises `runbook.failure` of its own words when it says that it crashed.
        """
        url = apps.url(self._modal, deployment.name)
        if url is None:
            raise ToolingError(f"Modal gives no address for {deployment.name}", todo="run it again")
        deadline = time.monotonic() + self._modal.start_timeout_s
        while time.monotonic() < deadline:
            status = _knock(url)
            if known is None:
                if status == 200:
                    return Endpoint(base_url=url, api_key=key)
                time.sleep(POLL_S)
                continue
            fresh = {k: v for k, v in apps.boots(deployment).items() if k not in known}
            for boot in (BootRecord.model_validate_json(fresh[k]) for k in sorted(fresh)):
                if (boot.release, boot.generation) != (deployment.release, deployment.generation):
                    continue
                if boot.kind is BootKind.CRASHED:
                    raise runbook.failure(
                        f"llama-server of {deployment.release} does not come up on Modal",
                        said=boot.reason,
                        evidence=boot.reason,
                        todo=f"`modal app logs {deployment.name}`",
                    )
                if status == 200 or not deployment.wait:
                    return Endpoint(base_url=url, api_key=key)
            time.sleep(POLL_S)
        raise ToolingError(
            f"{deployment.name} did not come up in {self._modal.start_timeout_s} s",
            evidence=apps.classified(apps.logs(self._modal, deployment.name)),
            todo=f"`modal app logs {deployment.name}`; is there a free {deployment.gpu or 'CPU'}?",
        )

    def _definition(self, deployment: Deployment) -> str:
        return digest_of([deployment.baked(), code_digest("")])[:16]

    def deployed(self, stage: StageName) -> Deployed | None:
        """What the stage serves, when Modal still has the very version that we deployed."""
        text = self.store.files.read(_path(stage))
        if text is None:
            return None
        try:
            known = Deployed.model_validate_json(text)
        except ValueError:  # another version of this program wrote it: deploying again is right, and costs little
            return None
        return known if apps.version(self._modal, self._modal.stage_app(stage)) == known.version else None

    def _remember(self, stage: StageName, deployment: Deployment) -> None:
        known = Deployed(
            release=deployment.release,
            generation=deployment.generation,
            definition=self._definition(deployment),
            version=apps.version(self._modal, deployment.name) or 0,
            key=deployment.key,
        )
        self.store.files.write(_path(stage), known.model_dump_json(indent=1) + "\n")

    def _back_to(self, stage: StageName, release_id: str | None, generation: str) -> None:
        """Leave the stage with an earlier release. What goes wrong here is not raised: what made us go back says more.

        By a deploy: Modal's own `app rollback` is not part of every plan.
        """
        with suppress(Problem):
            if release_id is None:
                self.stop(stage)
                return
            release = self.store.get_release(release_id)
            deployment = self._deployment(stage, self._modal.stage_app(stage), release, generation=generation)
            self._deploy(deployment)
            for container in apps.containers(self._modal, deployment.name):
                apps.stop_container(container.id)  # what was not good enough answers no more
            self._remember(stage, deployment)


def _path(stage: StageName) -> str:
    return f"deployments/{stage}.json"


def _knock(url: str) -> int:
    """The status of /health; 0 when nothing answers."""
    try:
        return httpx.get(f"{url}/health", timeout=20, trust_env=False).status_code
    except httpx.HTTPError:
        return 0
