"""The words of a release as frozen models, and the three errors a person can meet. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from modal_app.redaction import hide, redact

StageName = Literal["staging", "production"]


class Problem(Exception):
    """What happened, the evidence for it, and what to do next; without a secret. The only errors shown to a person."""

    exit_code = 3

    def __init__(self, what: str, *, evidence: str = "", todo: str = "") -> None:
        self.what, self.evidence, self.todo = redact([what, evidence.strip(), todo])
        super().__init__(self.what)

    def __str__(self) -> str:
        lines = [self.what.replace("\n", "\n            ")]
        if self.evidence:
            lines += ["  evidence: " + self.evidence.replace("\n", "\n            ")]
        if self.todo:
            lines += ["  next:     " + self.todo.replace("\n", "\n            ")]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:  # Prefect pickles what a task raises
        return (_problem, (type(self), self.what, self.evidence, self.todo))


class BadInput(Problem):
    """The request or a setting cannot be carried out as given: the person who gave it must change it."""

    exit_code = 2


class ReleaseFailed(Problem):
    """The candidate is bad: a verification failed. Production is as it was."""

    exit_code = 1


class ToolingError(Problem):
    """Our own tooling, the machine or the network broke: nothing is known about the candidate. Retry."""

    exit_code = 3


def _problem(kind: type[Problem], what: str, evidence: str, todo: str) -> Problem:
    return kind(what, evidence=evidence, todo=todo)


class Model(BaseModel):
    """A frozen value that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def digest_of(value: Any) -> str:
    """sha256 (64 hex characters) of a value's canonical JSON: the one way identities are made."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


class UpstreamRelease(Model):
    """An upstream tag, always resolved to all that is known of it."""

    build: int = Field(gt=0, description="upstream build number: the N of tag bN")
    stable: str | None = Field(default=None, description="stable tag vX.Y.Z, if this build carries one")
    commit: str | None = Field(default=None, description="upstream commit sha, if the upstream tells it")
    source: str = Field(default="pypi", description="which upstream it came from")
    published_at: datetime | None = None

    @property
    def tag(self) -> str:
        return f"b{self.build}"

    def __str__(self) -> str:
        return f"{self.stable} ({self.tag})" if self.stable else self.tag


class Change(Model):
    """One upstream pull request (or, without one, one commit), as upstream's own notes tell of it."""

    build: int = Field(gt=0, description="the first build that has it")
    pull: int | None = Field(default=None, description="number of the pull request")
    title: str
    body: str = Field(default="", description="what its author says of it, where the upstream tells it")
    files: tuple[str, ...] = Field(default=(), description="the paths that it touches, where the upstream tells them")

    def __str__(self) -> str:
        return f"b{self.build} #{self.pull} {self.title}" if self.pull else f"b{self.build} {self.title}"


class ReleaseNotes(Model):
    """What upstream's notes tell of the builds after `low`, up to and with `high`."""

    low: int
    high: int
    until: int = Field(description="the last build that the notes speak of; less than `high`: the rest is unknown")
    changes: tuple[Change, ...] = Field(description="oldest first")


class PatchStatus(StrEnum):
    CLEAN = "clean"
    """It applies with all its context on the very lines and in the very functions that it was written for."""
    REBASED = "rebased"
    """Lines around it moved or changed; every changed line landed in the function it was written for."""
    PARTLY_UPSTREAMED = "partly_upstreamed"
    """Upstream has some of its changes; what is left landed where it belongs, and is shown."""
    UPSTREAMED = "upstreamed"
    """Its effect is in upstream's code: evidence names the line."""
    OBSOLETE = "obsolete"
    """Its probe passes on a build without it."""
    NOT_APPLICABLE = "not_applicable"
    """The target is older than what it mends: the code that it changes does not exist there yet."""
    SOURCE_MOVED = "source_moved"
    """The code that it changes lives elsewhere now, without its effect: evidence says where."""
    CONFLICT = "conflict"
    """It does not fit where it was written for, and nothing shows that upstream has it: a person decides."""
    UNDECIDED = "undecided"
    """What would decide can't be read here: too large, not in time, or not in this archive. A person decides."""
    BROKEN = "broken"
    """The file is not a patch that may be trusted: cut off, partly rewritten, or leaving the source tree."""

    @property
    def built_with(self) -> bool:
        """Whether the patch is part of the source tree that is built."""
        return self in (PatchStatus.CLEAN, PatchStatus.REBASED, PatchStatus.PARTLY_UPSTREAMED)

    @property
    def dropped(self) -> bool:
        """Whether the source tree is right without the patch. What upstream fixed may then be retired."""
        return self in (PatchStatus.UPSTREAMED, PatchStatus.OBSOLETE, PatchStatus.NOT_APPLICABLE)

    @property
    def blocked(self) -> bool:
        """Whether nothing may be built before a person has looked."""
        return not self.built_with and not self.dropped


class PatchResult(Model):
    """What became of one patch of the series on one upstream release."""

    file: str
    title: str
    status: PatchStatus
    evidence: str = Field(description="why this status: one line a fact, paths and line numbers in the target's tree")
    detail: str = Field(default="", description="the new diff of a rebased patch, the report of a blocked one")
    passed_without: bool = Field(default=False, description="whether its probes passed on a build without it")
    waiver: str = Field(default="", description="who says that it can't be proved, and why")
    sha256: str = Field(default="", description="of the patch file that this was found of")


class SourceTree(Model):
    """Upstream release + patch series. Its identity is `tree`."""

    upstream: UpstreamRelease
    archive_sha256: str = Field(description="sha256 of the archive that upstream's source came in")
    upstream_tree: str = Field(description="git tree hash before the patch series")
    tree: str = Field(description="git tree hash after the patch series")
    patches: tuple[PatchResult, ...] = ()


class Recipe(Model):
    """How a source tree is compiled."""

    backend: Literal["cpu", "cuda"] = Field(default="cpu", description="what computes; cuda needs nvcc")
    build_type: str = Field(default="Release", description="CMAKE_BUILD_TYPE")
    target: str = Field(default="llama-server", description="the CMake target that is built and served")
    cmake: dict[str, str] = Field(default_factory=dict, description="further CMake definitions, NAME -> value")
    cpu_flags: tuple[str, ...] = Field(
        default=(), description="further compiler flags of the code made for this very CPU, such as -mno-avx512f"
    )


class Build(Model):
    """A compiled llama-server: what `builds/<digest>/manifest.json` holds."""

    digest: str
    source: SourceTree
    recipe: Recipe
    toolchain: dict[str, str] = Field(description="tool -> version, and the CPU it is native to")
    version: str = Field(description="what the finished binary says of itself")
    files: dict[str, str] = Field(description="path in the build folder -> sha256")
    seconds: float
    objects: int = Field(description="object files compiled or taken from the compiler cache")
    cache_hits: int
    built_at: datetime
    avoids: tuple[str, ...] = Field(
        default=(), description="ids of the known faults (tasks/faults.toml) it was kept from"
    )
    selftest: str = Field(default="", description="what its self-test said before it was published")

    @property
    def tag(self) -> str:
        return self.source.upstream.tag

    @staticmethod
    def identity(source: SourceTree, recipe: Recipe, toolchain: dict[str, str]) -> str:
        """The digest (16 hex characters) of the build that this source, recipe and toolchain make."""
        return digest_of([source.tree, source.upstream.build, recipe.model_dump(), toolchain])[:16]


class FileRef(Model):
    """A file that a release needs, by content."""

    name: str
    sha256: str
    size_bytes: int


class Release(Model):
    """The immutable bundle that is promoted as one."""

    upstream: UpstreamRelease
    tree: str
    build: str = Field(description="build digest")
    argv: tuple[str, ...] = Field(description="server argv; files stand as {model}, {mmproj}, {chat_template}, ...")
    env: dict[str, str] = Field(default_factory=dict, description="variables that the server sees besides")
    files: dict[str, FileRef] = Field(description="placeholder -> file; {model.2} is the second part of {model}")
    alias: str = Field(description="the served model name")

    @property
    def id(self) -> str:
        """12 hex characters over everything that makes the release what it is."""
        what = self.model_dump(mode="json", exclude={"upstream"} if self.env else {"upstream", "env"})
        return digest_of(what | {"build_number": self.upstream.build})[:12]

    @property
    def label(self) -> str:
        return f"{self.upstream.tag} ({self.id})"

    def is_called(self, word: str) -> bool:
        """Whether a person may mean it who says this: its tag, with or without the b, its stable tag, its id, or the
        first 4 characters of that or more."""
        names = (self.upstream.tag, str(self.upstream.build), self.upstream.stable)
        return word in names or (len(word) >= 4 and self.id.startswith(word))


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    """The release is bad."""
    INCONCLUSIVE = "inconclusive"
    """Measured, not decided: a person decides."""
    ERRORED = "errored"
    """Our own tooling broke: retry, never promote."""


class Verification(Model):
    """One named check of one release, with a verdict and its evidence."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    release: str
    verdict: Verdict
    summary: str = Field(description="one line for a person")
    promise: str = Field(default="", description="what was promised, and the source of the promise")
    evidence: dict[str, Any] = Field(default_factory=dict, description="JSON: requests, responses, numbers")
    basis: str = Field(default="", description="digest of what else it depends on; another basis makes it stale")
    seconds: float = 0.0
    at: datetime = Field(default_factory=now)

    @property
    def is_known(self) -> bool:
        """Whether it passed although its promise is not kept: production does not keep it either."""
        return self.verdict is Verdict.PASSED and UNMET in self.evidence


UNMET = "unmet"
"""In a verification's evidence: how its promise is not kept."""
NOT_ASKED = "not_asked"
"""In a verification's evidence: why it could not be asked at all, in words that are the same for all that share it."""
SERVER_SAID = "server_said"
"""In a verification's evidence: the last words of the server that died of it, or kept it from being asked."""


def by_cause(verifications: Sequence[Verification]) -> list[list[Verification]]:
    """The verifications, those together that one server's death, or one way of dying, decided; by the first of each.

    One cause is one line to a person, however many promises it takes along. All of a group have one verdict, and
    either were being asked or could not be asked.
    """
    groups: dict[tuple[object, ...], list[Verification]] = {}
    for each in verifications:
        same = (each.verdict, each.summary, NOT_ASKED in each.evidence)
        groups.setdefault(same if SERVER_SAID in each.evidence else (each.name,), []).append(each)
    return list(groups.values())


def headlines(groups: Sequence[Sequence[Verification]]) -> list[str]:
    """What each group of `by_cause` came to, a line each: `30 contracts could not be asked: ...`, `evals: 3 items ...`.

    What a line before has told is not told again.
    """
    lines, known = [], ""
    for group in groups:
        first, died = group[0], SERVER_SAID in group[0].evidence
        why = " for that reason" if died and first.summary == known else f": {first.summary}"
        lines.append(f"{_who(group)}{why}")
        known = first.summary if died else known
    return lines


def _who(group: Sequence[Verification]) -> str:
    names = [v.name for v in group]
    if NOT_ASKED in group[0].evidence:
        subjects = {name.partition(".")[0] for name in names}
        many = f"{len(names)} {subjects.pop() if len(subjects) == 1 else 'verifications'}"
        return f"{many if len(names) > 1 else names[0]} could not be asked"
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def settle(verifications: Sequence[Verification]) -> None:
    """Nothing when a person may decide. Raises ReleaseFailed for a failed one, ToolingError for an errored one."""
    for verdict, kind, todo in (
        (Verdict.FAILED, ReleaseFailed, "read the evidence; `llama-release upgrade --again` verifies anew"),
        (Verdict.ERRORED, ToolingError, "nothing is known about the release: mend it and run the upgrade again"),
    ):
        if groups := by_cause([v for v in verifications if v.verdict is verdict]):
            # what a server was asked when it died first: the rest may come of it
            groups.sort(key=lambda group: (SERVER_SAID not in group[0].evidence, NOT_ASKED in group[0].evidence))
            more = sum(map(len, groups[1:]))
            what = headlines(groups)[0] if SERVER_SAID in groups[0][0].evidence else f"{groups[0][0].name} {verdict}"
            raise kind(f"{what}{f', and {more} more' if more else ''}", evidence=_evidence(groups), todo=todo)


def _evidence(groups: Sequence[Sequence[Verification]]) -> str:
    """One line a cause, and under the first of those that a server's death brought about what that server said last."""
    lines = headlines(groups)
    words = {group[0].summary: str(group[0].evidence.get(SERVER_SAID, "")) for group in reversed(groups)}
    told: list[str] = []
    for line, group in zip(lines, groups, strict=True):
        told += [line, *(f"  {said}" for said in words.pop(group[0].summary, "").splitlines())]
    if len(groups) == 1 and SERVER_SAID in groups[0][0].evidence:
        return "\n".join(line.removeprefix("  ") for line in told[1:])  # the error says the rest
    return "\n".join(told)


class Dossier(Model):
    """All verifications of one release."""

    release: Release
    required: tuple[str, ...] = Field(description="verification names that must be there, sorted")
    verifications: tuple[Verification, ...] = Field(description="sorted by name")

    @property
    def digest(self) -> str:
        """12 hex characters: what an approval approves."""
        return digest_of(
            [self.release.id, list(self.required)]
            + [v.model_dump(mode="json", exclude={"seconds", "at"}) for v in self.verifications]
        )[:12]

    @property
    def missing(self) -> tuple[str, ...]:
        have = {v.name for v in self.verifications}
        return tuple(name for name in self.required if name not in have)

    def having(self, verdict: Verdict) -> tuple[Verification, ...]:
        return tuple(v for v in self.verifications if v.verdict is verdict)

    @property
    def blockers(self) -> tuple[str, ...]:
        """Why this release may never be promoted; empty when a person may decide."""
        bad = [v for v in self.verifications if v.verdict in (Verdict.FAILED, Verdict.ERRORED)]
        return tuple(f"{v.name} {v.verdict}: {v.summary}" for v in bad) + tuple(
            f"{name} missing" for name in self.missing
        )


class Hold(Model):
    """Production refuses automatic promotion until a person lifts it."""

    reason: str
    by: str
    at: datetime = Field(default_factory=now)


class StagePointer(Model):
    """A stage: a pointer to one release, the retained earlier ones (latest first), and perhaps a hold."""

    stage: StageName
    release: str | None = None
    dossier: str | None = Field(default=None, description="dossier digest under which it was promoted")
    since: datetime | None = None
    retained: tuple[str, ...] = ()
    hold: Hold | None = None
    version: int = Field(
        default=0, description="counts what was written here, by the store: whatever was decided of another one is void"
    )
    generations: dict[str, str] = Field(
        default_factory=dict, description="release -> its generation here, of those that were redeployed"
    )

    def generation(self, release: str | None) -> str:
        """Which redeploy of a release the stage serves or served last; '' when it never was redeployed."""
        return self.generations.get(release or "", "")


class Redeploy(Model):
    """A redeploy that was begun: the same release anew, with new servers and a new snapshot."""

    release: str
    generation: str = Field(description="8 hex characters that tell this redeploy from all others")
    by: str
    reason: str
    at: datetime = Field(default_factory=now)


class Intent(Model):
    """What is about to happen to a stage, recorded before it is touched."""

    stage: StageName
    action: Literal["promote", "rollback", "redeploy"]
    before: str | None
    after: str
    generation_before: str = ""
    generation: str = Field(default="", description="of `after`: see StagePointer.generations")
    failed: str = Field(default="", description="why `after` did not verify: from then on production goes back")
    dossier: str | None
    by: str
    note: str = ""
    at: datetime = Field(default_factory=now)


class Approval(Model):
    """A person's decision on one dossier, as the answer to one request.

    It is used up by the move of production that it allows, as it was given for the version of production's pointer
    before that; and void with any other move, hold or lifting of a hold.
    """

    release: str
    dossier: str
    expected: str | None = Field(description="the release in production when the person was asked")
    version: int = Field(default=0, description="of production's pointer when the person was asked")
    request: str = Field(default="", description="key of the request that it answers; '' where nobody was asked")
    decision: Literal["approve", "reject"]
    approver: str
    note: str = ""
    at: datetime = Field(default_factory=now)


class Request(Model):
    """A question to a person: what a flow run waits for."""

    run: str = Field(description="id of the flow run that asks")
    name: str = Field(description="the flow run's name")
    api_url: str = Field(description="API of the Prefect server that holds the run")
    link: str = Field(description="the run's page, '' where there is none")
    suspended: bool = Field(description="the run's process has ended; else it waits, and the question dies with it")
    tag: str = Field(description="the upstream release that the run goes to")
    release: str
    dossier: str = Field(description="digest of the dossier that is to be approved")
    required: tuple[str, ...] = Field(description="names of the verifications in that dossier")
    expected: str | None = Field(description="the release in production when the person was asked")
    version: int = Field(default=0, description="of production's pointer when the person was asked")
    asked_at: datetime
    expires_at: datetime
    reminded_at: datetime | None = None
    probed_at: datetime | None = Field(default=None, description="when staging was last sent idle and probed")
    state: Literal["open", "answered", "withdrawn", "expired"] = "open"
    reason: str = Field(default="", description="why it was withdrawn")

    @property
    def key(self) -> str:
        """What Prefect and the store know this question by: another one each time that is asked."""
        return f"{self.dossier}-{self.asked_at:%Y%m%d%H%M%S%f}"


class Promotion(Model):
    """A release that is now in production."""

    release: Release
    replaced: str | None
    dossier: str | None
    approver: str
    retained: tuple[str, ...]
    at: datetime
    proof: str = Field(default="", description="after a rollback: how production came back from an idle window")


class BootKind(StrEnum):
    CREATED = "created"
    """Booted and took the snapshot."""
    RESTORED = "restored"
    """Came back from the snapshot."""
    FELL_BACK = "fell_back"
    """Should have been restored, booted cold."""
    COLD = "cold"
    """No snapshot on this platform."""
    CRASHED = "crashed"


class BootRecord(Model):
    """How a serving process came up, by its own word: a container may be of another version of this program."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: str
    release: str
    generation: str = ""
    deployment: str = Field(default="", description="tells what was deployed from the same release with other settings")
    kind: BootKind
    reason: str = ""
    pid: int | None = None
    snapshot: str | None = Field(default=None, description="which one it took, or came back from")
    task: str = Field(default="", description="the container's id, where there are containers")
    worker: str = Field(default="", description="the kind of machine, where a snapshot is good for one kind only")
    retry_of: str = Field(default="", description="the container whose failed restore it was started in place of")
    health_s: float | None = Field(default=None, description="seconds from start to a 200 of /health")
    at: datetime = Field(default_factory=now)

    @property
    def containers(self) -> int:
        """How many were started for it."""
        return 2 if self.retry_of else 1


class Wake(Model):
    """What the request got that found no server up after an idle window, as the proxy before the server saw it."""

    stage: StageName
    release: str
    status: int
    first_byte_s: float = Field(description="seconds from the request to the first byte of its answer")
    probe: bool = Field(description="asked by us, and not by a user")
    at: datetime = Field(default_factory=now)


class Latency(Model):
    """One idle cycle of a stage. After idle and warm are two series: they are never averaged together."""

    stage: StageName
    kind: BootKind
    health_s: float | None = Field(description="seconds from the start of the server to a 200 of /health")
    after_idle_s: float = Field(description="seconds to the first token of the first request after an idle window")
    warm_s: float = Field(description="seconds to the first token of as much work right after")
    tokens_per_s: float | None = Field(default=None, description="tokens generated a second by one request, warm")
    snapshot: str | None = Field(
        default=None, description="which one it came back from: on Modal there is one for each worker type"
    )
    at: datetime = Field(default_factory=now)


class Endpoint(Model):
    """Base URL and API key of a running server. The key never shows in a repr, a dump or a redacted text."""

    base_url: str
    api_key: str | None = Field(default=None, repr=False, exclude=True)
    headers: dict[str, str] = Field(
        default_factory=dict, repr=False, exclude=True, description="of each request, such as a proxy's tokens: secrets"
    )
    start_s: float = Field(default=0.0, description="seconds that a server may take to come up, where that is known")

    def model_post_init(self, _context: Any) -> None:
        for secret in (self.api_key, *self.headers.values()):
            hide(secret)


class Event(Model):
    """One line of the ledger."""

    kind: str
    release: str | None = None
    stage: StageName | None = None
    summary: str
    detail: dict[str, Any] = Field(default_factory=dict)
    at: datetime = Field(default_factory=now)


PIECE = 1000
"""Characters of others' text that our expressions for lines read at once: most take the square of it, some its cube."""


def pieces(line: str) -> list[str]:
    """A line in pieces that an expression may be looked for in, whoever wrote it; nearly always the line itself."""
    return [line[at : at + PIECE] for at in range(0, len(line), PIECE)] or [""]
