"""`llama-release doctor` and `explain`: one line a check with what was seen and what to do; what a message means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tasks.doctor import Check, Seen, Severity, configuration, hub, machine, modal_calls, stored
from tasks.hub import known
from tasks.platforms import open_platform
from tasks.platforms.local import doctor as local
from tasks.release import Endpoint, Model, Problem, ToolingError
from tasks.runbook import rows_of
from tasks.settings import Settings, load
from tasks.store import Store

ONLY_WARNINGS = 10
"""The exit code when nothing is worse than a warning: none that a flow ends with."""


@dataclass(frozen=True)
class Asked:
    """What a person named besides the settings."""

    endpoint: str | None = None
    binary: Path | None = None
    argv: str | None = None
    code: tuple[Path, ...] = ()
    slack: bool = False


class Finding(Model):
    """What one check came to."""

    section: str
    check: str
    severity: Severity
    evidence: str
    todo: str = ""
    exit_code: int = 0
    runbook: tuple[str, ...] = ()
    """Ids of the runbook's rows that this check is named in, where it is not well."""

    @property
    def well(self) -> bool:
        return self.severity in (Severity.OK, Severity.NOTE)


def exit_code(found: list[Finding]) -> int:
    """That of the first error (1 a release or server, 2 input or settings, 3 machine or tooling); else 10 or 0."""
    errors = [finding.exit_code for finding in found if finding.severity is Severity.ERROR]
    warned = any(finding.severity is Severity.WARNING for finding in found)
    return errors[0] if errors else ONLY_WARNINGS if warned else 0


def diagnose(asked: Asked = Asked()) -> Iterator[Finding]:
    """As `examine`, with the settings in force here; wrong settings are a finding too, and the only one."""
    try:
        settings = load()
    except Problem as problem:
        yield _error("configuration", "settings", problem)
        return
    yield from examine(settings, asked)


def examine(settings: Settings, asked: Asked = Asked()) -> Iterator[Finding]:
    """Each check of the machine, the configuration, the store and a live server, as it is made. Nothing is changed by
    it; a server at `asked.endpoint` is asked a few requests, Slack sent a message where that is asked."""
    for section, (name, look) in _checks(settings, asked):
        try:
            said = look()
        except Problem as problem:
            yield _error(section, name, problem)
            continue
        except Exception as error:  # one check that breaks says nothing of the others
            what = f"the check itself broke: {type(error).__name__}: {error}"
            yield _error(section, name, ToolingError(what, todo="report it, with the words above"))
            continue
        seen = said if isinstance(said, Seen) else Seen(severity=Severity.OK, evidence=said)
        well = seen.severity in (Severity.OK, Severity.NOTE)
        yield Finding(section=section, check=name, **seen.model_dump(), runbook=() if well else _rows(name))


def _error(section: str, name: str, problem: Problem) -> Finding:
    evidence = f"{problem.what}: {problem.evidence}" if problem.evidence else problem.what
    return Finding(
        section=section, check=name, severity=Severity.ERROR, evidence=evidence, todo=problem.todo,
        exit_code=problem.exit_code, runbook=_rows(name),
    )  # fmt: skip


def _rows(check: str) -> tuple[str, ...]:
    return tuple(row.id for row in rows_of(f"doctor {check}"))


def _checks(settings: Settings, asked: Asked) -> Iterator[tuple[str, Check]]:
    """(section, check), most basic first."""
    here = settings.platform == "local"
    try:
        platform = open_platform(settings)
    except Problem as problem:
        yield from (("machine", check) for check in machine.checks(settings))
        yield "configuration", ("platform", _raising(problem))
        return
    of_hub = tuple(hub.checks(settings, platform.store))
    settings = _with_model(platform.store, settings)
    yield from (("machine", check) for check in machine.checks(settings))
    if here:
        yield from (("local", check) for check in local.checks(settings))
    else:
        from tasks.platforms.modal.doctor import checks  # Modal's SDK takes a second to load

        yield from (("modal", check) for check in checks(settings))

    @cache
    def binaries() -> list[configuration.Binary]:
        if asked.binary:
            return [configuration.binary_at(asked.binary, settings.store)]
        return configuration.binaries(platform.store) if here else []  # to ask one on Modal starts a container

    yield from (("configuration", check) for check in of_hub)
    yield from (("configuration", check) for check in configuration.checks(settings, binaries, asked.argv))
    yield from (("configuration", check) for check in modal_calls.checks(settings, asked.code))
    yield from (("store", check) for check in stored.checks(platform, settings))
    if asked.slack:
        yield "store", ("slack", lambda: stored.slack(settings.notify))
    if asked.endpoint:
        from tasks.doctor import live  # it asks with the promises of tasks/contracts, and numpy behind them
        from tasks.platforms.modal.apps import tokens_for

        key = settings.api_key.get_secret_value() if settings.api_key else None
        wait_s = settings.local.start_timeout_s if here else settings.modal.start_timeout_s
        address = asked.endpoint.rstrip("/").removesuffix("/v1")
        endpoint = Endpoint(base_url=address, api_key=key, headers={} if here else tokens_for(settings.modal, address))
        yield from (("server", check) for check in live.checks(endpoint, wait_s))


def _with_model(store: Store, settings: Settings) -> Settings:
    """The settings with the files of a model of the Hub, where they are here; what is wrong is the check's to tell."""
    try:
        return known(store, settings)
    except Problem:
        return settings


def _raising(problem: Problem) -> Callable[[], str]:
    def look() -> str:
        raise problem

    return look
