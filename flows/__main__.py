"""Safe upgrades of a self-hosted llama.cpp server."""

# `--help` and the shell's completion import this module, and so does every command. Prefect takes two seconds to load,
# Modal, numpy and pydantic their share: so a verb imports in its body what it runs. tests/test_start.py says which may
# load what.

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from tasks.console import console, one_line, print_json, show_live, show_table, styled, two_columns, user_name, visible

if TYPE_CHECKING:
    from uuid import UUID

    from prefect import Flow
    from rich.table import Table

    from flows import demo as demonstration
    from flows.doctor import Finding
    from flows.outcome import Outcome
    from tasks.doctor import needs
    from tasks.release import Problem
    from tasks.settings import Settings
    from tasks.store import Store

# Prefect's own console lines would drown the rows; its server has them all the same. It reads this when it is imported.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

INTERRUPTED = 130
SEEN = 200  # characters of a line that `explain` quotes
TOLD = ("cause", "fix", "owner", "source")  # of a row, by `explain`
OPENED = (
    "Open: no password, any Host name. Every user of this machine, whoever reaches the port and a web page that points "
    "its own name here may start runs, approve, roll back and read everything. Let nobody but your proxy reach it"
)
COST = "up to 12 requests of at most 400 tokens each"  # what tasks/doctor/live.py asks of a server

app = typer.Typer(
    no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
hold_app = typer.Typer(no_args_is_help=True, help="Production's hold after a rollback.")
patches_app = typer.Typer(
    help="The patch series on an upstream release: each patch's status, and the evidence for it.",
)
app.add_typer(hold_app, name="hold")
app.add_typer(patches_app, name="patches")
upstream_app = typer.Typer(no_args_is_help=True, help="What changed upstream, read from its own source trees.")
app.add_typer(upstream_app, name="upstream")
hub_app = typer.Typer(no_args_is_help=True, help="A model of the Hugging Face Hub: server.hub_model.")
app.add_typer(hub_app, name="hub")

Json = Annotated[bool, typer.Option("--json", help="print JSON; the rows then go to standard error")]
To = Annotated[str | None, typer.Option(help="upstream build, such as b11434; the newest eligible one by default")]


By = Annotated[str, typer.Option(help="who does it", default_factory=user_name, show_default="you")]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"llama-release {version('llama-release')}")
        raise typer.Exit


@app.callback()
def llama_release(
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    """What stands before a command."""
    console.stderr = False  # a process may have run another command, with --json


@app.command()
def upgrade(
    to: To = None,
    again: Annotated[bool, typer.Option(help="verify anew what was verified before")] = False,
    approver: Annotated[str | None, typer.Option(help="approve as this person, for unattended runs")] = None,
    as_json: Json = False,
) -> None:
    """Bring production to a newer upstream release, when every proof holds and a person agrees."""
    from flows.plan import foreseen
    from tasks.doctor import needs

    _check_tag(to)
    settings = _begin(as_json, needs.UPGRADE)
    outcome = foreseen(settings, to, again)
    if outcome is None:
        from flows.upgrade import upgrade as flow

        with _prefect_of(settings) as page:
            outcome = run_flow(flow, page, approver, to=to, again=again)
    _end(outcome, as_json)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="why")],
    by: By,
    to: Annotated[str | None, typer.Option(help="a retained release, by its tag or id; the latest by default")] = None,
    now: Annotated[
        bool, typer.Option("--now", help="whatever else runs or is broken: without Prefect, idle window or trial")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put production back to a retained release, and hold it there until the hold is lifted."""
    if now:
        from flows import rollback_now

        return rollback_now.roll_back(by, reason, to, as_json)

    from tasks.platforms import open_platform
    from tasks.promote import check_way_back

    settings = _begin(as_json, ())
    store = open_platform(settings).store
    if not store.intent("production"):  # else the flow finishes or undoes that first
        check_way_back(store, to)
    from flows.rollback import rollback as flow

    check_parameters(flow, by=by, reason=reason, to=to)
    with _prefect_of(settings) as page:
        outcome = run_flow(flow, page, None, by=by, reason=reason, to=to)
    _end(outcome, as_json)


@app.command()
def approve(
    run: Annotated[str, typer.Argument(help="id or name of the flow run that waits")],
    by: By,
    reject: Annotated[bool, typer.Option("--reject", help="leave production as it is")] = False,
    note: Annotated[str, typer.Option(help="why")] = "",
) -> None:
    """Decide on a release that waits for a person, as the Prefect page does. At a terminal it asks first."""
    from tasks.approval import held, terminal
    from tasks.platforms import open_store
    from tasks.settings import load

    settings = load()
    store = open_store(settings)
    request = terminal.find(store, run)
    terminal.show(store, request)
    decision: Literal["approve", "reject"] = "reject" if reject else "approve"
    if sys.stdin.isatty():
        typer.confirm(f"{decision} as {by}?", abort=True)
    with held.password_of(settings.store):
        terminal.decide(store, request, decision, by, note)
    console.print(one_line(f"{by}: {decision} dossier {request.dossier}; {request.name} goes on"))


@app.command()
def redeploy(
    reason: Annotated[str, typer.Option(help="why, such as: new API key")],
    by: By,
    release: Annotated[
        str | None, typer.Option(help="a retained release, by its tag or id; production's own by default")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send production's release through staging, idle windows and promotion again: for a new key, image or runtime."""
    from tasks.doctor import needs
    from tasks.platforms import open_platform
    from tasks.redeploy import choose

    settings = _begin(as_json, needs.REDEPLOY)
    store = open_platform(settings).store
    if not store.intent("production"):  # else the flow finishes or undoes that first
        choose(store, release)
    from flows.redeploy import redeploy as flow

    check_parameters(flow, by=by, reason=reason, release=release)
    with _prefect_of(settings) as page:
        outcome = run_flow(flow, page, None, by=by, reason=reason, release=release)
    _end(outcome, as_json)


@hold_app.command("lift")
def hold_lift(by: By) -> None:
    """Lift production's hold."""
    from tasks.platforms import open_store
    from tasks.promote import lift_hold
    from tasks.settings import load

    lifted = lift_hold(open_store(load()), by)
    console.print(one_line(f"lifted the hold that {lifted.by} set: {lifted.reason}"))


@patches_app.callback(invoke_without_command=True)
def patches(
    context: typer.Context,
    to: To = None,
    culprit: Annotated[
        bool, typer.Option("--culprit", help="look for the upstream build that broke a blocked one: some are fetched")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one record a patch: file, title, status, evidence")] = False,
) -> None:
    """Show what becomes of each patch on a release. Exits 1 when one is blocked."""
    if context.invoked_subcommand:
        return
    from flows import patches

    patches.show(to, culprit, as_json)


@hub_app.command("update")
def hub_update() -> None:
    """Take the repository of server.hub_model as it is on the Hub now, from the next release on. Downloads nothing."""
    from flows import hub

    hub.update()


Why = Annotated[str, typer.Option(help="why the patch is there, in one sentence; its own trailer comes first")]
ProvedBy = Annotated[str, typer.Option(help="what fails without the patch and passes with it; its own trailer goes")]
Waive = Annotated[str, typer.Option(metavar="REASON", help="why it can't be proved: the approver sees that, and you")]
Which = Annotated[str, typer.Argument(metavar="N|FILE")]


@patches_app.command("add")
def patches_add(
    source: Annotated[
        str, typer.Argument(help="a diff, a git work tree, the number of a pull request, or - for a pipe")
    ],
    by: By,
    commit: Annotated[str | None, typer.Option(help="a commit of the git repository SOURCE")] = None,
    to: To = None,
    title: Annotated[str, typer.Option(help="its title, where it has none")] = "",
    why: Why = "",
    proved_by: ProvedBy = "",
    waive: Waive = "",
) -> None:
    """Put a patch at the end of the series, as it stands on a release. Refused where it does not fit."""
    from flows import patches

    waiver = f"{by}: {waive}" if waive else ""
    patches.add(source, commit, to, patches.Reasons(title, why, proved_by, waiver))


@patches_app.command("import")
def patches_import(
    folder: Annotated[Path, typer.Argument(help="a folder of patches, a quilt series, or a fork with --since")],
    by: By,
    since: Annotated[str | None, typer.Option(help="upstream's branch or tag that the fork's branch left")] = None,
    to: To = None,
    why: Why = "",
    proved_by: ProvedBy = "",
    waive: Waive = "",
) -> None:
    """Put the patches of a folder, or the commits of a fork's branch, at the end of the series."""
    from flows import patches

    patches.import_series(folder, since, to, patches.Reasons("", why, proved_by, f"{by}: {waive}" if waive else ""))


@patches_app.command("drop")
def patches_drop(
    which: Which, reason: Annotated[str, typer.Option(help="why nobody needs it any more")], to: To = None
) -> None:
    """Take a patch out of the series, without a proof that upstream has it. Refused where a later one needs it."""
    from flows import patches

    patches.drop(which, reason, to)


@patches_app.command("reorder")
def patches_reorder(which: Annotated[list[str], typer.Argument(metavar="N|FILE...")], to: To = None) -> None:
    """Put these patches first, in this order. Refused where the source tree would be another one."""
    from flows import patches

    patches.reorder(which, to)


@patches_app.command("fold")
def patches_fold(into: Which, which: Which, to: To = None) -> None:
    """Make a patch part of the one before it, which keeps its name and its reasons."""
    from flows import patches

    patches.fold(into, which, to)


@patches_app.command("export")
def patches_export(folder: Path, to: To = None) -> None:
    """Write the series as it stands on a release into an empty folder, as quilt and packagers read it."""
    from flows import patches

    patches.export(folder, to)


@patches_app.command("refresh")
def patches_refresh(to: To = None) -> None:
    """Write the series as it stands on a release. Writes nothing when a patch is blocked."""
    from flows import patches

    patches.refresh(to)


@patches_app.command("watch")
def patches_watch(as_json: Json = False) -> None:
    """Bring the series to the newest upstream release as the scheduled patches watch does, and tell what breaks."""
    from flows.patches_watch import patches_watch as flow

    with prefect_page(as_json) as page:
        outcome = run_flow(flow, page, None)
    _end(outcome, as_json)


@patches_app.command("retire")
def patches_retire(which: Annotated[str, typer.Argument(metavar="N|FILE")], to: To = None) -> None:
    """Take a patch out of the series when upstream has it or its probe passes without it, and commit that."""
    from flows import patches

    patches.retire_one(which, to)


@patches_app.command("edit")
def patches_edit(
    which: Annotated[str | None, typer.Argument(metavar="N|FILE")] = None,
    to: To = None,
    go_on: Annotated[bool, typer.Option("--continue", help="export what you made of it as the patch")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="drop the work folder, leave the patch as it was")] = False,
) -> None:
    """Take a patch into your hands: a work folder with the release and the patch merged in, as git users expect."""
    from flows import patches

    patches.edit_one(which, to, go_on, abort)


Markdown = Annotated[bool, typer.Option("--markdown", help="print a page in Markdown, to send to others")]
Everything = Annotated[bool, typer.Option("--all", help="each difference a line, those that break nobody too")]


@upstream_app.command("between")
def upstream_between(
    low: Annotated[str, typer.Argument(help="the older build, such as b11401")],
    high: Annotated[str, typer.Argument(help="the newer build")],
    as_json: Json = False,
    as_markdown: Markdown = False,
    everything: Everything = False,
) -> None:
    """Say what changed between two upstream builds: what could break us, defaults, what is new, and the rest counted.

    Both source trees are read as they are, so it needs no build, no model and no notes. Nothing is changed.
    """
    from flows import upstream

    upstream.show(low, high, as_json, as_markdown, everything)


@upstream_app.command("since")
def upstream_since(
    low: Annotated[str, typer.Argument(help="the older build, such as b11401")],
    as_json: Json = False,
    as_markdown: Markdown = False,
    everything: Everything = False,
) -> None:
    """Say what changed since an upstream build, up to the newest eligible one: see `between`."""
    from flows import upstream

    upstream.show(low, None, as_json, as_markdown, everything)


@app.command()
def plan(
    to: To = None,
    argv: Annotated[
        bool, typer.Option("--argv", help="print only the llama-server command that the settings come to, on one line")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what an upgrade would do, and change nothing."""
    from tasks.settings import load

    if argv:
        return _print_argv(load(), as_json)
    from flows.plan import plan as make_plan

    found = make_plan(load(), to)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        show_table("an upgrade now", ("stage", "would"), found.rows)


def _print_argv(settings: Settings, as_json: bool) -> None:
    import shlex

    from tasks.preflight.argv import shown, variables

    words, env = ("llama-server", *shown(settings)), variables(settings.server)
    if as_json:
        print_json({"argv": list(words), "env": env})
    else:
        set_first = ["env", *(f"{name}={value}" for name, value in env.items())] if env else []
        print(shlex.join([*set_first, *words]))


@app.command("import", context_settings={"allow_interspersed_args": False})
def import_server(
    words: Annotated[
        list[str] | None, typer.Argument(help="after --: the line that starts it, such as llama-server -m ...")
    ] = None,
    compose: Annotated[Path | None, typer.Option(help="a compose file that starts it")] = None,
    service: Annotated[str | None, typer.Option(help="the service of the compose file, where several fit")] = None,
    unit: Annotated[Path | None, typer.Option(help="a unit of systemd that starts it")] = None,
    url: Annotated[str | None, typer.Option(help="base URL of it while it runs")] = None,
    key: Annotated[str, typer.Option(help="for --url: its API key, which is sent there alone and never written")] = "",
    maps: Annotated[
        list[str] | None, typer.Option("--map", metavar="INSIDE=HERE", help="where a path of it is on this machine")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace what differs in the settings that are there")] = False,
    as_json: Json = False,
) -> None:
    """Take over a llama-server as it runs: write llama-release.toml with what each setting came from.

    What was left unsaid stays llama-server's to decide. What can't be taken over is named, and nothing is written.
    """
    from flows.adopt import take_over
    from tasks.adoption.read import Source

    found = Source(
        words=tuple(words or ()), compose=compose, service=service, unit=unit, url=url, key=key, maps=tuple(maps or ())
    )
    take_over(found, force, as_json)


@app.command()
def contracts(
    against: Annotated[str, typer.Option(help="base URL of a running server, without /v1")],
    key: Annotated[str, typer.Option(help="its API key; without, none is sent")] = "",
    junit: Annotated[Path | None, typer.Option(help="write a JUnit report to this file")] = None,
    as_json: Json = False,
) -> None:
    """Ask any running server which promises it keeps: those that hold whatever model it serves. Changes nothing there.

    Exits 0 when it keeps all, 1 when it does not keep one, 3 when one got no answer.
    """
    from flows.contracts import ask_and_show

    console.stderr = as_json
    raise typer.Exit(ask_and_show(against, key, as_json, junit))


@app.command()
def status(
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="again every two seconds, until Ctrl-C")] = False,
) -> None:
    """Show what serves where, who waits for whom, and what the watch last saw. Wakes nothing and changes nothing."""
    from tasks.overview import as_json as records
    from tasks.overview import overview, rows
    from tasks.platforms import open_platform
    from tasks.settings import load

    settings = load()
    platform = open_platform(settings)
    if as_json:
        return print_json(records(overview(platform)))

    def table() -> Table:
        return two_columns([("", f"{platform.name} platform, store {platform.store.root}"), *rows(overview(platform))])

    if watch:
        _ends_in_order(signal.SIGINT)
        show_live(table, every_s=2)
    console.print(table())


@app.command()
def history(
    last: Annotated[int, typer.Option(min=1, help="how many of the latest events")] = 40, as_json: Json = False
) -> None:
    """Show the ledger."""
    from tasks.platforms import open_store
    from tasks.settings import load

    events = open_store(load()).ledger(last)
    if as_json:
        print_json([e.model_dump(mode="json") for e in events])
        return
    rows = ((f"{e.at:%Y-%m-%d %H:%M:%S}", e.kind, e.release or "-", e.summary) for e in events)
    show_table("ledger (UTC)", ("when", "what", "release", "summary"), rows)


@app.command()
def watch(as_json: Json = False) -> None:
    """Look at production once as the scheduled restore watch does: latency after idle and warm, restores, alerts."""
    from flows.restore_watch import restore_watch as flow

    with prefect_page(as_json) as page:
        outcome = run_flow(flow, page, None)
    _end(outcome, as_json)


@app.command()
def report(
    release: Annotated[str | None, typer.Argument(help="its id or its tag; production's by default")] = None,
) -> None:
    """Write one HTML page with all that is known of a release, and say where it is."""
    from tasks import release_page
    from tasks.platforms import open_platform
    from tasks.settings import load

    platform = open_platform(load())
    chosen = release_page.choose(platform.store, release)
    costs: list[release_page.Cost] = []
    if platform.name == "modal":
        from tasks.platforms.modal import ModalPlatform

        assert isinstance(platform, ModalPlatform)
        costs = [release_page.Cost(c.stage, c.seconds, c.usd) for c in platform.costs(chosen)]
    print(release_page.write(platform.store, chosen, costs))


@app.command()
def rebuild(digest: Annotated[str, typer.Argument(help="of a build, as the upgrade's row says")]) -> None:
    """Have a build compiled anew by the next upgrade.

    Rarely right: its digest names source, recipe and toolchain, so it cannot be stale, and a damaged build is noticed
    and made again by itself. Releases that were made of it cannot be served until then.
    """
    from tasks.platforms import open_store
    from tasks.settings import load

    forgotten = open_store(load()).forget_build(digest)
    console.print(f"{digest} will be made anew: `llama-release upgrade --to {forgotten.tag}`")


@app.command()
def start() -> None:
    """Have both stages serve what their pointers say, after a `stop` or a reboot of this machine.

    Production first, and whatever runs; staging belongs to a run that is under way, which may wait for days.
    """
    from tasks.platforms import open_platform
    from tasks.promote import production_lock, serve_pointer
    from tasks.release import StageName
    from tasks.settings import load

    platform = open_platform(load())

    def serve_stage(stage: StageName) -> None:
        if served := serve_pointer(platform, stage):
            console.print(f"{stage} answers at {served.base_url}")

    with production_lock(platform.store):
        serve_stage("production")
    with _no_run(platform.store, "start"):
        serve_stage("staging")


@app.command()
def stop() -> None:
    """Have both stages serve nothing; their pointers stay, and `start` brings them back.

    Refused while a run is under way, one that waits for a person at a terminal included.
    """
    from tasks.platforms import open_platform
    from tasks.promote import production_lock
    from tasks.release import StageName
    from tasks.settings import load

    platform = open_platform(load())
    with _no_run(platform.store, "stop"), production_lock(platform.store):
        for stage in get_args(StageName):
            platform.stop(stage)


def _no_run(store: Store, verb: str) -> AbstractContextManager[None]:
    """No run is under way meanwhile. Raises Taken, which names the one that is."""
    from tasks.turns import held_in_turn

    return held_in_turn(store, "release", {"name": verb})


@app.command()
def doctor(
    platform: Annotated[str | None, typer.Option(help="local or modal; the settings' own by default")] = None,
    endpoint: Annotated[str | None, typer.Option(help=f"base URL of a live server to ask too: {COST}")] = None,
    binary: Annotated[Path | None, typer.Option(help="a llama-server to ask instead of the store's builds")] = None,
    argv: Annotated[str | None, typer.Option(help="a server's command line to check against the binary")] = None,
    code: Annotated[list[Path] | None, typer.Option(help="Python files or folders that call Modal")] = None,
    slack: Annotated[bool, typer.Option("--slack", help="send a test message to Slack, and change it")] = False,
    as_json: Json = False,
) -> None:
    """Check machine, settings, store and, given its URL, a live server: one line a check. Nothing is changed.

    Exits 0 when all is well or noted, 10 when there are warnings only, else as the first error: 1 a release or server
    is bad, 2 input or settings, 3 machine or tooling.
    """
    from flows.doctor import Asked, diagnose, exit_code

    if platform:
        os.environ["LLAMA_RELEASE_PLATFORM"] = platform
    found: list[Finding] = []
    for finding in diagnose(Asked(endpoint, binary, argv, tuple(code or ()), slack)):
        if not as_json:
            _show(finding, new=not found or found[-1].section != finding.section)
        found.append(finding)
    if as_json:
        print_json([finding.model_dump(mode="json") for finding in found])
    raise typer.Exit(exit_code(found))


_MARKS = {"ok": ("ok  ", "green"), "note": ("note", "cyan"), "warning": ("warn", "yellow"), "error": ("fix ", "red")}


def _show(finding: Finding, new: bool) -> None:
    if new:
        console.print(styled(finding.section, "bold"), f" ({COST})" if finding.section == "server" else "")
    console.print(" ", styled(*_MARKS[finding.severity]), f"{finding.check:<12}", end=" ")
    console.print(finding.evidence.replace("\n", f"\n{'':<20}"), soft_wrap=True)
    if finding.todo:
        console.print(f"       {'':<12} -> {one_line(finding.todo)}", soft_wrap=True)


@app.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
def explain(
    text: Annotated[
        list[str] | None, typer.Argument(help="an error message; without it a log is read from stdin")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a message or a log means: each known symptom in it, its cause and its fix, what matters most first.

    A message may begin with a dash. Exits 0 when something was known, 1 when not.
    """
    from tasks import runbook

    said = " ".join(text) if text else sys.stdin.read()
    matches = runbook.explain(said.split("\n"))  # as grep counts lines
    if as_json:
        print_json([match.model_dump(mode="json") for match in matches])
    for match in () if as_json else matches:
        times = f", {match.count} lines like it" if match.count > 1 else ""
        console.print(styled(match.row.symptom, "bold"))
        seen = f"line {match.at}{times}: {match.line[:SEEN]}"
        for name, words in (("seen", seen), *((name, getattr(match.row, name)) for name in TOLD)):
            if words:
                console.print(f"  {name:<7} {one_line(words)}", soft_wrap=True)
    if not matches and not as_json:
        _not_known(runbook.where_to_look(said))
    raise typer.Exit(0 if matches else 1)


def _not_known(places: list[str]) -> None:
    from tasks import runbook

    console.print("Not known." + (" Look next at:" if places else ""))
    for where in places:
        console.print(f"  - {where}", soft_wrap=True)
    console.print("Collect this, so that somebody can tell:")
    for what in runbook.load().collect:
        console.print(f"  - {what}", soft_wrap=True)


@app.command()
def cost(release: Annotated[str, typer.Argument(help="its tag or its id")], as_json: Json = False) -> None:
    """Show what a release has cost on Modal: seconds of containers and GPUs by stage, and their price."""
    from tasks import release_page
    from tasks.platforms import open_platform
    from tasks.platforms.modal import ModalPlatform
    from tasks.release import BadInput
    from tasks.settings import load

    platform = open_platform(load())
    if not isinstance(platform, ModalPlatform):
        raise BadInput(f"a release costs nothing on the {platform.name} platform", todo="set platform = modal")
    chosen = release_page.choose(platform.store, release)
    found = platform.costs(chosen)
    if as_json:
        print_json([each.model_dump() for each in found])
        return
    rows = [(c.stage, c.containers, f"{c.seconds:.0f}", f"{c.gpu_seconds:.0f}", f"{c.usd:.2f}", c.open) for c in found]
    show_table(
        f"{chosen.label}: {sum(c.usd for c in found):.2f} USD",
        ("stage", "containers", "seconds", "GPU seconds", "USD", "not ended"),
        rows,
    )


@app.command()
def conformance(
    yes: Annotated[bool, typer.Option("--yes", help="do not ask whether it may cost what it says")] = False,
    as_json: Json = False,
) -> None:
    """Find out what this account's Modal does, once and after each update of its SDK, and what follows from it.

    An app of its own, a dozen cold starts on the GPU that serves. Its price is said first; the stages are not touched.
    """
    from tasks.platforms import open_platform
    from tasks.platforms.modal import ModalPlatform
    from tasks.platforms.modal import conformance as checking
    from tasks.release import BadInput
    from tasks.settings import load

    console.stderr = as_json
    platform = open_platform(load())
    if not isinstance(platform, ModalPlatform):
        raise BadInput(f"the {platform.name} platform is this machine", todo="set platform = modal")
    console.print(checking.price(platform.settings.modal), soft_wrap=True)
    if not yes and not typer.confirm("begin?", err=as_json):
        raise BadInput("nothing was started", todo="say y, or give --yes")
    found = platform.conformance(lambda done, total, what: console.print(f"  {done}/{total} {one_line(what)}"))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    marks = {True: "as assumed", False: "OTHERWISE", None: "not seen"}
    rows = [(i.name, i.assumed, i.seen, marks[i.as_assumed]) for i in found.items]
    show_table("what this account's Modal does", ("what", "assumed", "seen", ""), rows)
    for item in found.differences:
        console.print(f"{item.name}: {item.follows}", soft_wrap=True)


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="of the Prefect page on this machine; 0: any")] = 4200,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="no password, any Host: for a proxy in front that asks who somebody is")
    ] = False,
) -> None:
    """Run scheduled upgrades and the restore watch here, with a Prefect page, until Ctrl-C or SIGTERM.

    The page asks for the password in the store's prefect/password. PREFECT_UI_URL names the address at which a proxy in
    front has it.

    With PREFECT_API_URL set it works for that server instead of starting its own.
    """
    from flows import serve as serving
    from tasks.doctor import needs

    _ends_in_order(signal.SIGTERM, signal.SIGINT)
    with prefect_page(False, port, needed=needs.MACHINE, open_to_all=open_to_all) as page:
        serving.deploy()
        with serving.worker() as worker:
            console.print(f"  Prefect page {page}/deployments", soft_wrap=True)
            serving.until_stopped(worker)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(envvar="DEMO_KEEP", help="leave servers and Prefect page running")] = False,
    approver: Annotated[str | None, typer.Option(envvar="DEMO_APPROVER", help="approve as this person")] = None,
) -> None:
    """Upgrade a real llama.cpp server on this machine, from upstream's source to promotion."""
    from flows import demo as demonstration
    from flows.rollback import rollback as rollback_flow
    from flows.upgrade import upgrade as upgrade_flow

    demonstration.configure(os.environ, keep)
    with prefect_page(False, needed=demonstration.NEEDED) as page:

        def runs(flow: Flow[..., Any]) -> demonstration.Flow:
            return lambda who, **parameters: run_flow(flow, page, who, **parameters)

        outcome = demonstration.run(runs(upgrade_flow), runs(rollback_flow), approver, keep)
        if outcome.kind == "promoted":
            _what_next(page, keep)
    _end(outcome, False)


def _what_next(page: str, keep: bool) -> None:
    console.print("\nTry next, with .venv/bin on your PATH:")
    for line in (
        "llama-release status                     what serves where, who waits for whom, what is retained",
        "llama-release history                    everything that happened",
        "llama-release plan --to b11393           what another upgrade would do",
        "llama-release start                      production answers again (it was stopped with the demo)",
        "DEMO_KEEP=1 make demo                    leaves the servers and the Prefect page running",
    ):
        console.print(f"  {line}")
    if keep:
        console.print(f"\nPrefect page {page} stays until you press Enter here; `llama-release stop` ends the servers.")
        sys.stdin.readline()


@contextmanager
def prefect_page(
    as_json: bool, port: int | None = None, needed: needs.Needs = (), open_to_all: bool = False
) -> Iterator[str]:
    """A Prefect server for this command; yields its page's address. Raises what `_begin` raises."""
    with _prefect_of(_begin(as_json, needed), port, open_to_all) as page:
        yield page


@contextmanager
def _prefect_of(settings: Settings, port: int | None = None, open_to_all: bool = False) -> Iterator[str]:
    """The Prefect server of this store, and how a person gets into its page; yields the page's address."""
    from flows.server import prefect_server
    from tasks import password

    with prefect_server(settings.store, port, open_to_all) as page:
        if not os.environ.get("PREFECT_API_URL"):
            asked = f"Prefect page asks for what is in {password.folder(settings.store) / password.NAME}"
            console.print(" ", one_line(OPENED if open_to_all else asked), soft_wrap=True)
        yield page


def _begin(as_json: bool, needed: needs.Needs) -> Settings:
    """The settings, once a command that runs a flow has said where it runs. With JSON, rows go to standard error.

    Raises one Problem for all that this machine lacks of what is needed.
    """
    from tasks.platforms import open_platform
    from tasks.settings import load

    console.stderr = as_json
    settings = load()
    doubtful = _look(settings, needed)
    where = f" {open_platform(settings).name} platform, store {settings.store.absolute()}"
    console.print(styled("llama-release", "bold"), where)
    for line in doubtful:
        console.print(" ", styled("warn", "yellow"), one_line(line), soft_wrap=True)
    return settings


def _look(settings: Settings, needed: needs.Needs) -> list[str]:
    """What is doubtful; what is missing is raised, unless a move of production was left open: the flow finishes or
    undoes that before it looks, whatever this machine lacks."""
    from tasks.doctor import needs
    from tasks.platforms import open_platform
    from tasks.release import Problem

    try:
        return needs.require(settings, needed)
    except Problem:
        if settings.store.is_dir() and open_platform(settings).store.intent("production"):
            return []
        raise


def _check_tag(to: str | None) -> None:
    """Raises BadInput for what is no tag, in the words of `check_parameters`, without the library of Prefect."""
    from pydantic import TypeAdapter, ValidationError

    from flows.parameters import Tag
    from tasks.release import BadInput

    try:
        TypeAdapter(Tag | None).validate_python(to)
    except ValidationError as error:
        raise BadInput(
            "upgrade does not take this", evidence=f"to: {error.errors()[0]['msg']}", todo="see --help"
        ) from error


def check_parameters(flow: Flow[..., Any], **parameters: Any) -> None:
    """Raises BadInput for what the flow does not take, as Prefect would once a server runs."""
    from prefect.exceptions import ParameterTypeError

    from tasks.release import BadInput

    try:
        flow.validate_parameters(parameters)
    except ParameterTypeError as error:
        raise BadInput(f"{flow.name} does not take this", evidence=str(error), todo="see --help") from error


def run_flow(flow: Flow[..., Any], page: str, approver: str | None, **parameters: Any) -> Outcome:
    """Run a flow here and give back what it came to; its approval is asked for at this terminal too."""
    from flows.outcome import Outcome
    from flows.server import approver_at_the_terminal
    from tasks.approval import terminal
    from tasks.platforms import open_store
    from tasks.settings import load
    from tasks.troubles import Troubles

    settings = load()

    def show(run: str) -> None:
        store = open_store(settings)
        terminal.show(store, terminal.find(store, run))

    with approver_at_the_terminal(approver, Troubles(settings.store), show) as tell:
        told: list[UUID] = []

        def started(flow: Any, flow_run: Any, state: Any) -> None:  # noqa: ARG001 - as Prefect names them
            if not told:
                told.append(flow_run.id)
                console.print(f"  Prefect page {page}/v2/runs/flow-run/{flow_run.id}", soft_wrap=True)
                tell(flow_run.id)

        check_parameters(flow, **parameters)
        outcome = flow.with_options(on_running=[started])(**parameters)
    return Outcome.model_validate(outcome)


def _end(outcome: Outcome, as_json: bool) -> None:
    label = f" {outcome.release.label}" if outcome.release else ""
    console.print("\n", styled(outcome.kind.replace("_", " "), "bold"), label, sep="")
    if outcome.note:
        console.print(one_line(outcome.note), soft_wrap=True)
    if as_json:
        print_json(outcome.model_dump(mode="json"))
    raise typer.Exit(outcome.exit_code)


def main() -> None:
    """The entry point.

    Exits 0 when done, 1 when the release failed, 2 on bad input, 3 when our tooling broke, 4 when a person rejected
    the release, 10 when `doctor` has warnings only, 130 when interrupted.
    """
    _take_any_bytes()
    signal.signal(signal.SIGINT, _interrupt)
    try:
        _check_words(sys.argv)
        app()
    except (KeyboardInterrupt, SystemExit) as ended:  # typer (0.29) makes an exit of the one, without a word
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        print("\ninterrupted; nothing is lost: run it again", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        from tasks.release import Problem

        if not isinstance(error, Problem | OSError):
            raise
        problem = error if isinstance(error, Problem) else _refused_here(error)
        print(f"\n{visible(str(problem))}", file=sys.stderr)
        sys.exit(problem.exit_code)


def _ends_in_order(*signals: signal.Signals) -> None:
    """From now on these are how the command is meant to end."""
    for each in signals:
        signal.signal(each, lambda *_: sys.exit(0))


def _interrupt(*_: object) -> None:
    """The first Ctrl-C ends what runs in order. The second ends this process: the first may wait for a Prefect server
    that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _take_any_bytes() -> None:
    """A log may hold any byte, and a terminal may not have every character: neither ends a command."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _check_words(words: list[str]) -> None:
    """Raises BadInput for an argument that no document of the store can hold."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            from tasks.release import BadInput

            raise BadInput("an argument is not UTF-8", evidence=ascii(word), todo="give it in UTF-8") from error


def _refused_here(error: OSError) -> Problem:
    """What this machine's system did not let us do: its own words say it best, and name the file."""
    from tasks.release import ToolingError

    return ToolingError(
        "this machine's system refused it", evidence=str(error), todo="mend that (`llama-release doctor`); run it again"
    )


if __name__ == "__main__":
    main()
