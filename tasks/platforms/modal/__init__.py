"""The Modal platform: a stage is an app, its binary an immutable folder on a Volume, its containers from a snapshot."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import httpx
import modal
from modal.exception import NotFoundError
from pydantic import Field

from modal_app.deployment import Deployment, FileRef
from modal_app.server import KEY
from modal_app.warmup import Golden
from tasks import runbook
from tasks.console import console, one_line
from tasks.endpoint import Client
from tasks.faults import Fault
from tasks.platforms import Progress, Sight, unseen
from tasks.platforms.modal import apps, building, conformance, cost, starts, warming
from tasks.platforms.modal.account import command, told
from tasks.platforms.modal.starts import Moved
from tasks.platforms.modal.store import VolumeStore
from tasks.platforms.modal.tools import DEPLOY_LIMIT_S, Tools, code_digest
from tasks.release import (
    BadInput,
    BootKind,
    BootRecord,
    Build,
    Endpoint,
    Latency,
    Model,
    Problem,
    Recipe,
    Release,
    SourceTree,
    StageName,
    ToolingError,
    digest_of,
    now,
)
from tasks.settings import Settings
from tasks.store import Store

POLL_S = 0.5
HISTORY = 20
"""How many moves of a stage are kept: Modal's log, which they are held against, goes back less far."""
HISTORY_S = 30.0
REFUSED_GRACE_S = 20.0
"""How long what did not pass may end its answers: nobody new is to be answered by it."""
KEPT_S = 30.0
BESIDE_LIMIT_S = 60.0
"""How long an earlier container may get some of the requests after a new one is up."""
IDLE_LIMIT_S = 120.0
SECOND_BOOT_S = 600.0
"""What a boot may take on a worker of another kind than was measured: users saw 252 to 490 s."""
SILENT_DEATHS = 3
"""So many containers that died without a word, and no one that came up: it is no bad luck."""
RECORD_LIMIT_S = 30.0
"""How long a boot record may come after the container answers."""
ONE_TOKEN = {"prompt": "Hello", "n_predict": 1}
KNOCK_S = 20.0
OPENING_S = 30.0
"""How long Modal's proxy may go by the version before."""
PLACING_S = 120.0
"""What Modal may take to find a machine, beside the time that it allows a container to start."""
Served = Literal["staging", "production", "trial"]


class Deployed(Model):
    """What we deployed to a stage last: deployments/<stage>.json in the store."""

    release: str
    generation: str = ""
    definition: str = Field(description="its mark; another one is deployed again")
    text: str = Field(default="", description="all of it, as its containers have it: what one goes back to")
    version: int
    key: str = Field(description="tells the API key that its snapshot knows from another one")
    open: bool = Field(
        default=True, description="whether any request wakes it; everything did before proxy tokens were asked for"
    )

    @property
    def deployment(self) -> Deployment | None:
        """All of it; None when an earlier version of this program deployed it."""
        try:
            return Deployment.model_validate_json(self.text) if self.text else None
        except ValueError:
            return None


class Move(Model):
    """A stage from one version to another: moves/<stage>.json in the store, written before it is deployed."""

    history: tuple[Moved, ...] = Field(min_length=1, description="what was deployed to the stage, the latest first")
    version: int | None = Field(description="of the app before it; None where none was deployed")
    earlier: tuple[str, ...] = Field(description="the containers that were up before it")
    scaling: apps.Scaling | None = Field(default=None, description="what somebody set by hand: a deploy undoes it")
    open: bool = Field(description="whether those are still to be ended")

    @property
    def again(self) -> bool:
        """Whether the very same was deployed before, so that a container of it may be up still."""
        return any(each.definition == self.history[0].definition for each in self.history[1:])


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
        self._logs: dict[str, starts.Log] = {}
        self._histories: dict[StageName, tuple[float, tuple[Moved, ...]]] = {}

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
        deployment, began = self._deployment("trial", name, release, wait=wait), now()
        try:
            self._deploy(deployment, {KEY: key})
            endpoint = self._await(deployment, key, known=set(), since=began)
            self._trials[endpoint.base_url] = name
            yield endpoint
        finally:
            try:
                apps.stop(self._modal, name)
                with told("removing a trial's boot records"), suppress(NotFoundError):
                    modal.Dict.objects.delete(f"{name}-boots", environment_name=self._modal.environment)
            except Problem as error:  # what the trial showed stands; idle it costs nothing, and `doctor` names it
                console.print(f"  the trial {name} could not be removed: {one_line(error.what)}")

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
        progress: Progress = unseen,
    ) -> Endpoint:
        """The stage serves this release from now on; nothing happens when it does already, with the same key and
        generation.

        `check` runs against a trial of the release before production moves (staging has no traffic to protect; what
        production retains was there before, and a trial takes a GPU container of its own; `at_once` there is no time).
        What is up goes on answering until a container of the new version has said in a boot record that it is up, and
        `check` has passed through the stage's address, which an earlier container may have answered for it. Then those
        are drained: each ends what it answers, for up to modal.exit_grace_s (`at_once` nobody waits for that), and
        `check` is made again of what is left. What production goes back to is checked only then: what is up may hang.
        What a check raises leaves the stage as it was, by a redeploy if need be.
        """
        self.store.save_release(release)
        deployment = self._deployment(stage, self._modal.stage_app(stage), release, generation=generation)
        _ = self._headers(open=deployment.open)  # before anything is touched
        before = self.deployed(stage)
        left = self._move(stage)
        if before and before.definition == deployment.mark:
            if left and left.open and left.earlier and left.version != before.version:  # they may be all there is
                self._await(deployment, self._key, set(apps.boots(deployment)), left.history[0].at, again=left.again)
            self._end_earlier(stage, left, at_once=at_once, progress=progress)
            return self.endpoint(stage)
        if not at_once and (lost := self.store.lost(release)):
            raise ToolingError(
                f"{release.label} is not whole in the store", evidence=", ".join(lost), todo="build it again"
            )
        went_well = at_once or self._was_on(stage, release, generation)
        if stage == "production" and not went_well:
            with self.trial(release) as endpoint:
                check(endpoint)
        pointer = self.store.pointer(stage)
        was = (before.release, before.generation) if before else (pointer.release, pointer.generation(pointer.release))
        known, move = set(apps.boots(deployment)), self._begin_move(stage, deployment)
        try:
            version = self._deploy(deployment)
            earlier = set(move.earlier) if version != move.version else set[str]()
            since = move.history[0].at if version != move.version else None
            endpoint = self._await(deployment, self._key, known, since, again=move.again)
            if not went_well:
                self._check_beside(deployment, endpoint, check, earlier)
            self._end_earlier(stage, move, at_once=at_once, progress=progress)
            if earlier or went_well:
                check(endpoint)
            self._remember(stage, deployment, version)
        except BaseException:
            self._back_to(stage, *was, candidate=deployment, move=move, at_once=at_once)
            raise
        return endpoint

    def _was_on(self, stage: StageName, release: Release, generation: str) -> bool:
        """Whether production has or had it, in this generation: that is what one goes back to, by hand or not, when
        what is up is no good. A trial of it would take a GPU for minutes meanwhile, and what is up may hang: a check
        that it answers tells nothing of the other one."""
        pointer = self.store.pointer(stage)
        kept = release.id in (pointer.release, *pointer.retained) and pointer.generation(release.id) == generation
        return stage == "production" and kept

    def _move(self, stage: StageName) -> Move | None:
        """The latest move of a stage; None when none is known."""
        text = self.store.files.read(_moves(stage))
        try:
            return Move.model_validate_json(text) if text else None
        except ValueError:  # of another version of this program
            return None

    def _history(self, stage: StageName) -> tuple[Moved, ...]:
        """What was deployed to a stage, the latest first; read anew now and then, as another process may have."""
        read_at, history = self._histories.get(stage, (float("-inf"), ()))
        if time.monotonic() - read_at > HISTORY_S:
            move = self._move(stage)
            history = move.history if move else ()
            self._histories[stage] = (time.monotonic(), history)
        return history

    def _begin_move(self, stage: StageName, deployment: Deployment, ends: set[str] | None = None) -> Move:
        """Write down what is about to be deployed, and what of what is up before it is to be ended: all by default.

        A process that is killed behind this leaves it to the next one to end the earlier containers: once something
        else is deployed, nobody can tell which those are.
        """
        left, version = self._move(stage), apps.version(self._modal, deployment.name)
        definition = deployment.mark
        if left and left.open and left.history[0].definition == definition and left.version != version:
            self._log(deployment.name).ours.update(left.earlier)
            return left
        there = sorted(each.id for each in apps.containers(self._modal, deployment.name))
        self._log(deployment.name).ours.update(there)
        this = Moved(
            release=deployment.release, generation=deployment.generation, definition=definition, at=now(),
            before=tuple(there),
        )  # fmt: skip
        history = (this, *(left.history[: HISTORY - 1] if left else ()))
        earlier = tuple(there if ends is None else sorted(ends))
        scaling = self._by_hand(stage) or (left.scaling if left and left.open else None)
        move = Move(history=history, version=version, earlier=earlier, scaling=scaling, open=True)
        return self._save_move(stage, move)

    def _by_hand(self, stage: StageName) -> apps.Scaling | None:
        """How somebody had the stage scaled by hand since it was deployed; None when nobody did, or it is not known."""
        known = self.deployed(stage)
        was = known.deployment if known else None
        found = self.forced(stage) or apps.scaling(self._modal, self._modal.stage_app(stage))
        return found if was and found != apps.Scaling(scaledown_window=was.settings.idle_s) else None

    def _close_move(self, stage: StageName, move: Move) -> None:
        """It is over: what somebody had set by hand holds again."""
        if move.scaling:
            apps.scale(self._modal, self._modal.stage_app(stage), move.scaling)
            console.print(f"  {stage} is scaled as it was set by hand: {move.scaling}")
        self._save_move(stage, move.model_copy(update={"open": False}))

    def _save_move(self, stage: StageName, move: Move) -> Move:
        self.store.files.write(_moves(stage), move.model_dump_json(indent=1) + "\n")
        self._histories[stage] = (time.monotonic(), move.history)
        return move

    def _end_earlier(self, stage: StageName, move: Move | None, *, at_once: bool, progress: Progress) -> None:
        """End the containers that a move was begun beside. What goes wrong is said, and undoes nothing: the new version
        was seen to answer."""
        if move is None or not move.open:
            return
        name, earlier, said = self._modal.stage_app(stage), set(move.earlier), ""
        try:
            if apps.version(self._modal, name) == move.version:
                earlier = set()  # nothing was deployed: they are what serves
            if at_once and earlier:
                for container in {each.id for each in apps.containers(self._modal, name)} & earlier:
                    self._stop_container(name, container)
            elif earlier:
                said = apps.drain(self._modal, name, earlier, progress, self._modal.exit_grace_s)
            self._close_move(stage, move)
        except Problem as error:
            said = f"may be left: {one_line(error.what)}"
        if said:
            console.print(f"  the earlier containers of {stage}: {said}")

    def _stop_container(self, name: str, container: str) -> None:
        """End a container of an app; how it ends is no failure of its own."""
        self._log(name).ours.add(container)
        apps.stop_container(container)

    def check_keys(self) -> None:
        """Raises BadInput when the API key is not set, or no proxy token where production asks for one."""
        _ = self._key
        _ = self._headers(open=self._will_open("production"))

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
        headers = self._headers(open=self.opens(stage))
        return Endpoint(base_url=url, api_key=self._key, headers=headers, start_s=self._start_limit_s)

    def address(self, stage: StageName) -> str:
        """Where the stage answers; '' when it serves nothing."""
        return apps.url(self._modal, self._modal.stage_app(stage)) or ""

    def idle(self, stage: StageName) -> int:
        """Force the idle window and undo what forced it; how many containers are left (0 is the goal).

        Production has clients, and a container that is stopped breaks off what it streams: it is only left to scale
        down by itself, which it does at once when nothing is asked of it.
        """
        name = self._modal.stage_app(stage)
        if apps.url(self._modal, name) is None:
            return 0
        with self._no_spare_containers(stage):
            deadline = time.monotonic() + IDLE_LIMIT_S
            while (running := apps.containers(self._modal, name)) and time.monotonic() < deadline:
                for container in running if stage == "staging" else ():
                    self._stop_container(name, container.id)
                time.sleep(POLL_S)
            return len(running)

    def warm(self, stage: StageName, progress: Progress) -> str:
        """Force cold starts until so many landed on no new kind of worker that none can be frequent any more.

        Bounded by modal.warm_starts for what is deployed; what they are expected to cost is said before each. Counted
        by boot records, so what a killed process found counts. Production's containers take snapshots of their own.
        Raises ToolingError when the stage does not go idle or come up.
        """
        wanted, most = warming.enough(self._modal.rare_worker), self._modal.warm_starts
        while most and (deployed := self.deployed(stage)) and self._is_in_snapshot(deployed):
            boots = self._boots_of(deployed, stage)
            took = [each for each in self.store.latencies(deployed.release) if each.stage == stage]
            known, quiet, made = warming.kinds(boots), warming.quiet(boots), max(0, len(boots) - 1)
            if quiet >= wanted or made >= most:
                rest = "" if quiet >= wanted else f"; stopped after {made} starts, there may be more"
                said = f"{len(known)} kinds of workers, each with a snapshot, none new in {quiet} starts{rest}"
                return "; ".join(filter(None, (said, warming.worth(took))))
            left, price = (
                min(wanted - quiet, most - made),
                warming.price_usd(took, self._modal, self._modal.gpu or None),
            )
            progress(
                quiet, wanted, f"cold starts to find all kinds of workers ({len(known)} so far): {left} to "
                f"{most - made} more, {warming.told(price, left)} to {warming.told(price, most - made)}; a new kind "
                "boots whole",
            )  # fmt: skip
            self._start_cold(stage, deployed)
        return ""

    def _is_in_snapshot(self, deployed: Deployed) -> bool:
        """Whether llama-server is: else each start boots it, on whatever machine."""
        return deployed.deployment is not None and deployed.deployment.boots_before_snapshot

    def _boots_of(self, deployed: Deployed, stage: StageName) -> list[BootRecord]:
        mine = (deployed.release, deployed.generation)
        return [boot for boot in self.boots(stage) if (boot.release, boot.generation) == mine]

    def _start_cold(self, stage: StageName, deployed: Deployed) -> None:
        """One start from idle, until its boot record is there; what it took is kept. Raises ToolingError."""
        if left := self.idle(stage):
            raise ToolingError(f"{stage} did not go idle", evidence=f"{left} containers are left", todo="run it again")
        known, began = self.boots(stage), time.monotonic()
        with Client(self.endpoint(stage)) as client:
            client.wait_healthy(self._start_limit_s, every_s=POLL_S)
            first, up_s = client.post("/completion", ONE_TOKEN), time.monotonic() - began
            again, warm_s = client.post("/completion", ONE_TOKEN), time.monotonic() - began - up_s
        boots = self._came_up(stage, known)
        if not boots:
            raise ToolingError(
                f"{stage} came up, and no boot was recorded", evidence=f"in {RECORD_LIMIT_S:.0f} s",
                todo=f"`modal app logs {self._modal.stage_app(stage)}`",
            )  # fmt: skip
        kind = next((boot.kind for boot in boots if boot.kind is BootKind.FELL_BACK), boots[-1].kind)
        if (first.status, again.status) == (200, 200):
            self.store.add_latency(
                deployed.release,
                Latency(
                    stage=stage, kind=kind, health_s=boots[-1].health_s, after_idle_s=up_s, warm_s=warm_s,
                    snapshot=boots[-1].snapshot,
                ),
            )  # fmt: skip

    def _came_up(self, stage: StageName, known: list[BootRecord]) -> list[BootRecord]:
        """What came up after the known ones, once one of it says so; [] when none does in time."""
        deadline, last = time.monotonic() + RECORD_LIMIT_S, max((boot.at for boot in known), default=None)
        while time.monotonic() < deadline:
            found = [boot for boot in self.boots(stage) if last is None or boot.at > last]
            if any(boot.health_s is not None for boot in found):
                return found
            time.sleep(POLL_S)
        return []

    @contextmanager
    def _no_spare_containers(self, stage: StageName) -> Iterator[None]:
        """While inside, Modal keeps no container of the stage that has nothing to do; then it is as it was found.

        How it was found is in the store before it is changed: a process that is killed in here leaves it for `unforce`.
        """
        self.unforce(stage)
        name = self._modal.stage_app(stage)
        if found := apps.scaling(self._modal, name):
            self.store.files.write(_forced(stage), found.model_dump_json() + "\n")
            apps.scale(self._modal, name, apps.NO_SPARE)
        try:
            yield
        finally:
            self.unforce(stage)

    def forced(self, stage: StageName) -> apps.Scaling | None:
        """How a stage was scaled before an idle window was forced that is in force now; None when none is.

        A deploy ends it, whatever the store still says: Modal is asked.
        """
        text = self.store.files.read(_forced(stage))
        in_force = text and apps.scaling(self._modal, self._modal.stage_app(stage)) == apps.NO_SPARE
        return apps.Scaling.model_validate_json(text) if text and in_force else None

    def unforce(self, stage: StageName) -> str:
        """Undo a forced idle window, such as a killed process leaves behind; what was done, '' when there was none."""
        found = self.forced(stage)
        if found:
            apps.scale(self._modal, self._modal.stage_app(stage), found)
        if self.store.files.read(_forced(stage)) is not None:
            self.store.files.remove(_forced(stage))
        return f"{stage} keeps its containers for {found.scaledown_window} s again" if found else ""

    def rest(self, stage: StageName, since: Sight) -> None:
        """Nothing: Modal does not tell whether a user asked something, and scales down by itself after modal.idle_s."""

    def stop(self, stage: StageName) -> None:
        """The stage serves nothing from now on. Nothing happens when it does not."""
        apps.stop(self._modal, self._modal.stage_app(stage))
        if known := self._deployed_last(stage):  # no version of Modal's any more; whether it was open is still known
            known = known.model_copy(update={"version": 0, "definition": ""})
            self.store.files.write(_path(stage), known.model_dump_json(indent=1) + "\n")

    def boots(self, stage: StageName) -> list[BootRecord]:
        """How the stage's containers came up, oldest first: as each wrote it, and those that died without a word.

        Modal keeps what they wrote for a week after it was last read.
        """
        app = self._modal.stage_app(stage)
        found = {key: BootRecord.model_validate_json(text) for key, text in apps.boots_of(self._modal, app).items()}
        ended = self._log(app).endings(len(found)) if found else []
        return starts.complete(found, ended, self._history(stage) if ended else ())

    def _log(self, app: str) -> starts.Log:
        return self._logs.setdefault(app, starts.Log(self._modal, app))

    def started(self, stage: StageName, since: datetime) -> int | None:
        """How many containers Modal counted since then; None when it does not tell just now, or for so long."""
        return apps.started(self._modal, self._modal.stage_app(stage), since)

    def version(self, stage: StageName) -> str:
        """The version of the app; '' when it is not the one that we deployed."""
        known = self.deployed(stage)
        return str(known.version) if known else ""

    def sight(self, stage: StageName) -> Sight:
        """How many containers are up, and what Modal counted. Whose requests those were it does not tell, and any
        request to a container counts as use, so none is made."""
        app = self._modal.stage_app(stage)
        down = "" if apps.version(self._modal, app) is not None else f"the app {app} is not deployed"
        return Sight(
            servers=len(apps.containers(self._modal, app)), down=down, last_hour=apps.last_hour(self._modal, app)
        )

    def revive(self, _stage: StageName) -> str:
        """Nothing: Modal keeps what is deployed, and what is not was stopped by somebody."""
        return ""

    def golden(self, stage: StageName, snapshot: str | None = None) -> Golden | None:
        """What was answered before a snapshot was taken: this one, or that of the latest container that has one.

        What fell back is in no snapshot, and has none. The containers leave it in a Dict, which forgets what nobody
        asks for in a week; from there it goes into the store.
        """
        if snapshot and (found := self._golden_of(stage, snapshot)):
            return found
        serves = self.serving(stage)
        mine = [boot for boot in self.boots(stage) if serves is None or (boot.release, boot.generation) == serves]
        if mine and not any(boot.task for boot in mine):  # of an earlier version of this program: one for the stage
            return self._golden_of(stage, stage)
        last = next((boot.snapshot for boot in reversed(mine) if boot.snapshot), None)
        return self._golden_of(stage, last) if last and not snapshot else None

    def _golden_of(self, stage: StageName, snapshot: str) -> Golden | None:
        path = f"goldens/{stage}-{snapshot}.json"
        if kept := self.store.files.read(path):
            return Golden.from_json(kept)
        with told(f"reading the golden answers of {stage}"):
            said = modal.Dict.from_name(
                f"{self._modal.stage_app(stage)}-golden",
                environment_name=self._modal.environment, create_if_missing=True,
            ).get(snapshot)  # fmt: skip
        if said is None:
            return None
        if snapshot != stage:
            self.store.files.write(path, str(said))
        return Golden.from_json(said)

    def conformance(self, progress: Progress) -> conformance.Conformance:
        """What this account's Modal does, found out by an app of its own. Raises what `conformance.run` raises."""
        headers = self._headers(open=bool(self._modal.open))
        return conformance.run(self.store, self._modal, headers, progress)

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
    def proxy_headers(self) -> dict[str, str]:
        """What Modal's proxy asks for before it starts anything. Raises BadInput when it is not set."""
        found = self._modal.proxy_tokens
        if not found:
            missing = [name for name in self._modal.proxy_variables.values() if not os.environ.get(name)]
            raise BadInput(
                "the servers on Modal answer whoever has a proxy token, and none is known here",
                evidence=f"{' and '.join(missing)} not set",
                todo="make one in the workspace's settings on modal.com and set both; clients send it in the headers "
                "Modal-Key and Modal-Secret. modal.open = true does without: then anybody's request starts a GPU",
            )
        return found

    def _headers(self, *, open: bool) -> dict[str, str]:
        """What a request needs besides the API key. Raises BadInput when it is asked for and not set."""
        return {} if open else self.proxy_headers

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
        key = "" if stage == "trial" else self.key_mark
        was = self._as_it_was(stage, release.id, generation)
        if was and was.key == key:
            settings = was.settings
        else:
            settings = self._modal.model_copy(update={"open": stage == "trial" or self._will_open(stage)})
        return Deployment(
            stage=stage, name=name, release=release.id, generation=generation, build=release.build, argv=release.argv,
            env=release.env,
            files={each: FileRef(name=ref.name, sha256=ref.sha256) for each, ref in release.files.items()},
            gpu=None if on_cpu else settings.gpu, wait=wait, settings=settings, key=key, code=code_digest(""),
        )  # fmt: skip

    def _as_it_was(self, stage: Served, release_id: str, generation: str) -> Deployment | None:
        """What the stage was given last, if it is this release in this generation: that keeps the settings that it was
        given with until a redeploy, which is another generation. None too when an earlier version of this program did.
        """
        known = self._deployed_last(stage) if stage != "trial" else None
        same = known and (known.release, known.generation) == (release_id, generation)
        return known.deployment if known and same else None

    def _will_open(self, stage: StageName) -> bool:
        """Whether any request wakes what is deployed to the stage next: what its clients can do stays as it is until a
        person says otherwise (modal.open)."""
        return self.opens(stage) if self._modal.open is None else self._modal.open

    def opens(self, stage: StageName) -> bool:
        """Whether any request wakes what the stage serves, as it was deployed last; not where nothing was."""
        known = self._deployed_last(stage)
        return known.open if known else bool(self._modal.open)

    def _deploy(self, deployment: Deployment, env: dict[str, str] | None = None) -> int:
        """Deploy it; the version that is there then. Modal skips what is deployed already."""
        command(
            "deploy", "-m", "modal_app.app", "--name", deployment.name, "--tag", deployment.release,
            environment=self._modal.environment, env={**deployment.baked(), **(env or {})},
            limit_s=DEPLOY_LIMIT_S,
        )  # fmt: skip
        after = apps.version(self._modal, deployment.name)
        if after is None:
            raise ToolingError(f"Modal does not have {deployment.name} deployed", todo="run it again")
        return after

    def _check_beside(
        self, deployment: Deployment, endpoint: Endpoint, check: Callable[[Endpoint], object], earlier: set[str]
    ) -> None:
        """Nothing when the new version passes. Raises what `check` raises.

        The address is that of all versions, so an earlier container may have answered what failed: as long as one is
        there, and not longer than BESIDE_LIMIT_S, it is asked again. It may have answered what passed as well: so the
        caller asks once more when none is left.
        """
        deadline = time.monotonic() + BESIDE_LIMIT_S
        while True:
            try:
                check(endpoint)
                return
            except Problem:
                there = {each.id for each in apps.containers(self._modal, deployment.name)}
                if not there & earlier or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_S)

    def _await_earlier(self, deployment: Deployment, known: set[str], since: datetime, refused: set[str]) -> None:
        """Return once a container of what one goes back to said how it came up, or Modal has ended what did not pass:
        it does that when something else serves, which may be what was up all the time."""
        url, deadline = apps.url(self._modal, deployment.name), time.monotonic() + self._start_limit_s
        headers, opening_until = self._headers(open=deployment.open), time.monotonic() + OPENING_S
        while url and time.monotonic() < deadline:
            _knock(Endpoint(base_url=url, headers=headers), opening_until)  # requests make Modal start a container
            boots = self._said(deployment)
            there = {each.id for each in apps.containers(self._modal, deployment.name)}
            if _fresh(boots, deployment, known, since) or not there & refused:
                return
            time.sleep(POLL_S)

    def _await(
        self, deployment: Deployment, key: str, known: set[str], since: datetime | None, *, again: bool = False
    ) -> Endpoint:
        """The endpoint, once a container said that it is up in a boot record that is not among the known ones, or is
        not older than the move to it (`since`), which a killed process may have begun.

        With None, nothing was deployed: what is has to answer, and to have come up last, as far as that is known. So it
        has KEPT_S after the very same as before was deployed `again`: Modal may keep a container of it that is up.
        Requests make Modal start a container. Raises `runbook.failure` of its own words when it says that it crashed,
        and of Modal's when SILENT_DEATHS died without a word: of one, the next container may be up in a moment, and it
        may have been one of the version before.
        """
        url = apps.url(self._modal, deployment.name)
        if url is None:
            raise ToolingError(f"Modal gives no address for {deployment.name}", todo="run it again")
        headers = self._headers(open=deployment.open)
        at = Endpoint(base_url=url, api_key=key, headers=headers, start_s=self._start_limit_s)
        deadline, silent = time.monotonic() + self._start_limit_s, list[str]()
        opening_until = time.monotonic() + OPENING_S
        while time.monotonic() < deadline:
            status, boots = _knock(at, opening_until), self._said(deployment)
            kept = again and not boots.keys() - known and time.monotonic() > deadline - self._start_limit_s + KEPT_S
            if since is None or kept:
                up = sorted((boot for boot in boots.values() if boot.health_s is not None), key=lambda boot: boot.at)
                if status == 200 and (not boots or (up and _is_of(up[-1], deployment))):
                    return at
                time.sleep(POLL_S)
                continue
            fresh = _fresh(boots, deployment, known, since)
            if any(boot.health_s is not None for boot in fresh) and (status == 200 or not deployment.wait):
                return at
            crashed = [boot.reason for boot in fresh if boot.kind is BootKind.CRASHED]
            silent = [each.words for each in self._log(deployment.name).silent(boots.values(), since)]
            if crashed or len(silent) >= SILENT_DEATHS:
                raise _does_not_come_up(deployment, (crashed or silent)[-1])
            time.sleep(POLL_S)
        if silent:
            raise _does_not_come_up(deployment, silent[-1])
        raise ToolingError(
            f"{deployment.name} did not come up in {self._start_limit_s:.0f} s",
            evidence=apps.classified(apps.logs(self._modal, deployment.name)),
            todo=f"`modal app logs {deployment.name}`; is there a free {deployment.gpu or 'CPU'}? With a limit in "
            "modal.max_containers there must be room for one more container than serve",
        )

    @cached_property
    def _start_limit_s(self) -> float:
        """Seconds to wait for a container to answer, by what a boot took on this account; the first time all that
        Modal itself allows one. Never less than SECOND_BOOT_S: a worker of another kind boots whole, and slower."""
        known = conformance.load(self.store)
        allowed = self._modal.start_timeout_s + max(PLACING_S, 3 * known.boot_s if known else 0.0)
        names = [self._modal.stage_app(stage) for stage in get_args(StageName)]
        kept = [json.loads(text) for name in names for text in apps.boots_of(self._modal, name).values()]
        took = [boot["health_s"] for boot in kept if boot["kind"] == BootKind.CREATED and boot["health_s"]]
        return float(min(allowed, max(SECOND_BOOT_S, 3 * max(took)))) if took else allowed

    def _said(self, deployment: Deployment) -> dict[str, BootRecord]:
        """Key -> boot record of its app; a key begins with the time."""
        return {key: BootRecord.model_validate_json(text) for key, text in apps.boots(deployment).items()}

    def deployed(self, stage: StageName) -> Deployed | None:
        """What the stage serves, when Modal still has the very version that we deployed."""
        known = self._deployed_last(stage)
        here = known and apps.version(self._modal, self._modal.stage_app(stage)) == known.version
        return known if here else None

    def _deployed_last(self, stage: StageName) -> Deployed | None:
        text = self.store.files.read(_path(stage))
        try:
            return Deployed.model_validate_json(text) if text else None
        except ValueError:  # another version of this program wrote it: deploying again is right, and costs little
            return None

    def foretells(self, stage: StageName) -> tuple[str, ...]:
        """What the next deployment to a stage changes for its clients, and what is paid for besides."""
        found = []
        known = self._deployed_last(stage)
        if known and known.open and not self._will_open(stage):
            found.append(
                f"clients of {stage} are refused (401) from its next deployment on unless they send a Modal proxy "
                "token in the headers Modal-Key and Modal-Secret (modal.open = false; it is open as it is deployed)"
            )
        if stage == "staging" and self._modal.warm_starts and self._modal.boots_before_snapshot(self._modal.gpu):
            wanted, most = warming.enough(self._modal.rare_worker), self._modal.warm_starts
            price = warming.price_usd([], self._modal, self._modal.gpu or None)
            found.append(
                f"{min(wanted, most)} to {most} cold starts of staging look for kinds of workers, "
                f"{warming.told(price, min(wanted, most))} to {warming.told(price, most)}"
            )
        return tuple(found)

    @property
    def holds_requests(self) -> bool:
        """Whether a request that finds no container up waits for one: not by Modal's guide on Servers. As this account
        was seen to do it, where a conformance run has."""
        known = conformance.load(self.store)
        return known is not None and bool(known.starts) and not any(start.refused for start in known.starts)

    def _remember(self, stage: StageName, deployment: Deployment, version: int) -> None:
        known = Deployed(
            release=deployment.release,
            generation=deployment.generation,
            definition=deployment.mark,
            text=deployment.text,
            version=version,
            key=deployment.key,
            open=deployment.open,
        )
        self.store.files.write(_path(stage), known.model_dump_json(indent=1) + "\n")

    def _back_to(
        self,
        stage: StageName,
        release_id: str | None,
        generation: str,
        *,
        candidate: Deployment,
        move: Move,
        at_once: bool,
    ) -> None:
        """Leave the stage with an earlier release. What goes wrong here is said and not raised: what made us go back
        says more.

        Which containers are the candidate's is asked before anything else is deployed. They are drained once one of the
        earlier release has said that it is up, and stopped when none did in time, or `at_once`: they were not good
        enough to answer anybody. Those that were up before it go on serving until Modal replaces them with others of
        the same release.

        By a deploy: Modal's own `app rollback` is not part of every plan.
        """
        name, refused = candidate.name, set[str]()
        try:
            if release_id is None:
                self.stop(stage)
                return
            if self.deployed(stage):  # nothing else was
                self._save_move(stage, move.model_copy(update={"open": False}))
                return
            deployment = self._as_it_was(stage, release_id, generation)
            if deployment is None:
                release = self.store.get_release(release_id)
                deployment = self._deployment(stage, name, release, generation=generation)
            if apps.version(self._modal, name) != move.version:
                refused = {each.id for each in apps.containers(self._modal, name)} - set(move.earlier)
            known, again = set(apps.boots(deployment)), self._begin_move(stage, deployment, ends=refused)
            version = self._deploy(deployment)
            self._remember(stage, deployment, version)
            if refused and version != again.version:
                self._await_earlier(deployment, set(known), again.history[0].at, refused)
            if refused and not at_once and (said := apps.drain(self._modal, name, refused, unseen, REFUSED_GRACE_S)):
                console.print(f"  what did not pass on {stage}: {said}")
            self._close_move(stage, again)
        except Problem as error:
            console.print(f"  {stage} may not be as it was: {one_line(error.what)}")
        for container in refused:
            with suppress(Problem):
                self._stop_container(name, container)


def _does_not_come_up(deployment: Deployment, said: str) -> Problem:
    return runbook.failure(
        f"llama-server of {deployment.release} does not come up on Modal",
        said=said,
        evidence=said,
        todo=f"`modal app logs {deployment.name}`",
    )


def _is_of(boot: BootRecord, deployment: Deployment) -> bool:
    """Whether it is of this very deployment; by its release alone where an earlier version of this program left it."""
    mark = boot.deployment or deployment.mark
    return (boot.release, boot.generation, mark) == (deployment.release, deployment.generation, deployment.mark)


def _fresh(
    boots: Mapping[str, BootRecord], deployment: Deployment, known: Collection[str], since: datetime
) -> list[BootRecord]:
    """Those of a deployment that are not among the known ones, or not older than the move to it, oldest first."""
    new = (boots[key] for key in sorted(boots) if key not in known or boots[key].at >= since)
    return [boot for boot in new if _is_of(boot, deployment)]


def _forced(stage: StageName) -> str:
    return f"forced/{stage}.json"


def _path(stage: StageName) -> str:
    return f"deployments/{stage}.json"


def _moves(stage: StageName) -> str:
    return f"moves/{stage}.json"


def _knock(at: Endpoint, opening_until: float) -> int:
    """The status of /health; 0 when nothing answers. Raises BadInput when Modal's proxy refuses: it starts nothing.
    Just after a deployment that opens a stage it may go by the version before."""
    try:
        answer = httpx.get(f"{at.base_url}/health", headers=at.headers, timeout=KNOCK_S, trust_env=False)
    except httpx.HTTPError:
        return 0
    if answer.status_code == 401 and time.monotonic() > opening_until:  # /health asks for no key of llama-server's
        raise BadInput(
            f"Modal's proxy refuses the request to {at.base_url}, and starts nothing",
            evidence=f"401 {answer.text[:200]}",
            todo="set the two variables of modal.proxy_key_env and modal.proxy_secret_env to a proxy token of this "
            "workspace (its settings on modal.com show which there are)",
        )
    return answer.status_code
