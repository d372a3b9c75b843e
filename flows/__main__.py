"""Safe upgrades of a self-hosted llama.cpp server."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

# Prefect's own console lines would drown the rows; its server has them all the same.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

import typer
from prefect import Flow

from flows import demo as demonstration
from flows.doctor import examine
from flows.outcome import Outcome
from flows.patches import app as patches_app
from flows.plan import plan as make_plan
from flows.rollback import rollback as rollback_flow
from flows.server import approver_at_the_terminal, prefect_server
from flows.upgrade import upgrade as upgrade_flow
from tasks.approval import terminal
from tasks.platforms import open_platform
from tasks.promote import lift_hold, serve_pointer
from tasks.release import BadInput, Problem, StageName, StagePointer, now
from tasks.report import console, show_table
from tasks.settings import load
from tasks.store import Store

INTERRUPTED = 130

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
hold_app = typer.Typer(no_args_is_help=True, help="Production's hold after a rollback.")
app.add_typer(hold_app, name="hold")
app.add_typer(patches_app, name="patches")

Json = Annotated[bool, typer.Option("--json", help="print JSON; the rows then go to standard error")]
To = Annotated[str | None, typer.Option(help="upstream build, such as b11434; the newest eligible one by default")]
By = Annotated[str, typer.Option(help="who does it", default_factory=getpass.getuser, show_default="you")]


@app.command()
def upgrade(
    to: To = None,
    again: Annotated[bool, typer.Option(help="verify anew what was verified before")] = False,
    approver: Annotated[str | None, typer.Option(help="approve as this person, for unattended runs")] = None,
    as_json: Json = False,
) -> None:
    """Bring production to a newer upstream release, when every proof holds and a person agrees."""
    with prefect_page(as_json) as page:
        outcome = run_flow(upgrade_flow, page, approver, to=to, again=again)
    _end(outcome, as_json)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="why")],
    by: By,
    to: Annotated[str | None, typer.Option(help="id of a retained release; the latest by default")] = None,
    as_json: Json = False,
) -> None:
    """Put production back to a retained release, and hold it there until the hold is lifted."""
    with prefect_page(as_json) as page:
        outcome = run_flow(rollback_flow, page, None, by=by, reason=reason, to=to)
    _end(outcome, as_json)


@app.command()
def approve(
    run: Annotated[str, typer.Argument(help="id or name of the flow run that waits")],
    by: By,
    reject: Annotated[bool, typer.Option("--reject", help="leave production as it is")] = False,
    note: Annotated[str, typer.Option(help="why")] = "",
) -> None:
    """Decide on a release that waits for a person, as the Prefect page does. At a terminal it asks first."""
    store = open_platform(load()).store
    request = terminal.find(store, run)
    terminal.show(store, request)
    decision: Literal["approve", "reject"] = "reject" if reject else "approve"
    if sys.stdin.isatty():
        typer.confirm(f"{decision} as {by}?", abort=True)
    terminal.decide(store, request, decision, by, note)
    console.print(f"{by}: {decision} dossier {request.dossier}; {request.name} goes on")


@hold_app.command("lift")
def hold_lift(by: By) -> None:
    """Lift production's hold."""
    lifted = lift_hold(open_platform(load()).store, by)
    console.print(f"lifted the hold that {lifted.by} set: {lifted.reason}")


@app.command()
def plan(to: To = None, as_json: Json = False) -> None:
    """Say what an upgrade would do, and change nothing."""
    found = make_plan(load(), to)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        show_table("an upgrade now", ("stage", "would"), found.rows)


@app.command()
def status(as_json: Json = False) -> None:
    """Show both stages: release, age, hold, what is retained."""
    platform = open_platform(load())
    store = platform.store
    pointers = [store.pointer(stage) for stage in get_args(StageName)]
    if as_json:
        print(json.dumps([p.model_dump(mode="json") for p in pointers], indent=1))
        return
    show_table(
        f"{platform.name} platform, store {store.root}",
        ("stage", "release", "since", "hold", "retained"),
        (_status_row(store, pointer) for pointer in pointers),
    )


def _status_row(store: Store, pointer: StagePointer) -> tuple[str, ...]:
    def label(release_id: str | None) -> str:
        found = store.release(release_id) if release_id else None
        return found.label if found else release_id or "-"

    age = str(timedelta(seconds=int((now() - pointer.since).total_seconds()))) if pointer.since else "-"
    hold = f"{pointer.hold.by}: {pointer.hold.reason}" if pointer.hold else "-"
    return pointer.stage, label(pointer.release), age, hold, ", ".join(map(label, pointer.retained)) or "-"


@app.command()
def history(
    last: Annotated[int, typer.Option(min=1, help="how many of the latest events")] = 40, as_json: Json = False
) -> None:
    """Show the ledger."""
    events = open_platform(load()).store.ledger()[-last:]
    if as_json:
        print(json.dumps([e.model_dump(mode="json") for e in events], indent=1))
        return
    rows = ((f"{e.at:%Y-%m-%d %H:%M:%S}", e.kind, e.release or "-", e.summary) for e in events)
    show_table("ledger (UTC)", ("when", "what", "release", "summary"), rows)


@app.command()
def rebuild(digest: Annotated[str, typer.Argument(help="of a build, as the upgrade's row says")]) -> None:
    """Have a build compiled anew by the next upgrade.

    Rarely right: its digest names source, recipe and toolchain, so it cannot be stale, and a damaged build is noticed
    and made again by itself. Releases that were made of it cannot be served until then.
    """
    forgotten = open_platform(load()).store.forget_build(digest)
    console.print(f"{digest} will be made anew: `llama-release upgrade --to {forgotten.tag}`")


@app.command()
def start() -> None:
    """Have both stages serve what their pointers say, after a `stop` or a reboot of this machine."""
    platform = open_platform(load())
    for stage in get_args(StageName):
        if served := serve_pointer(platform, stage):
            console.print(f"{stage} answers at {served.base_url}")


@app.command()
def stop() -> None:
    """Have both stages serve nothing; their pointers stay, and `start` brings them back."""
    platform = open_platform(load())
    for stage in get_args(StageName):
        platform.stop(stage)


@app.command()
def doctor(
    platform: Annotated[str | None, typer.Option(help="local or modal; the settings' own by default")] = None,
    as_json: Json = False,
) -> None:
    """Check the platform: one line a check, with what was seen and what to do. Nothing is changed."""
    if platform:
        os.environ["LLAMA_RELEASE_PLATFORM"] = platform
    found = []
    for finding in examine(load()):
        found.append(finding)
        if not as_json:
            mark = "[green]ok[/]  " if finding.well else "[red]fix[/] "
            console.print(f"  {mark} {finding.check:<12}", end=" ")
            console.print(finding.evidence, markup=False, soft_wrap=True)
            if finding.todo:
                console.print(f"       {'':<12} -> {finding.todo}", markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps([finding.model_dump() for finding in found], indent=1))
    raise typer.Exit(next((finding.exit_code for finding in found if not finding.well), 0))


@app.command()
def cost(release: Annotated[str, typer.Argument(help="id of a release")], as_json: Json = False) -> None:
    """Show what a release has cost on Modal: seconds of containers and GPUs by stage, and their price."""
    from tasks.platforms.modal import ModalPlatform  # Modal's SDK takes a second to load

    platform = open_platform(load())
    if not isinstance(platform, ModalPlatform):
        raise BadInput(f"a release costs nothing on the {platform.name} platform", todo="set platform = modal")
    found = platform.costs(platform.store.get_release(release))
    if as_json:
        print(json.dumps([each.model_dump() for each in found], indent=1))
        return
    rows = [(c.stage, c.containers, f"{c.seconds:.0f}", f"{c.gpu_seconds:.0f}", f"{c.usd:.2f}", c.open) for c in found]
    show_table(
        f"release {release}: {sum(c.usd for c in found):.2f} USD",
        ("stage", "containers", "seconds", "GPU seconds", "USD", "not ended"),
        rows,
    )


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(envvar="DEMO_KEEP", help="leave servers and Prefect page running")] = False,
    approver: Annotated[str | None, typer.Option(envvar="DEMO_APPROVER", help="approve as this person")] = None,
) -> None:
    """Upgrade a real llama.cpp server on this machine, from upstream's source to promotion."""
    with prefect_page(False) as page:

        def runs(flow: Flow[..., Any]) -> demonstration.Flow:
            return lambda who, **parameters: run_flow(flow, page, who, **parameters)

        outcome = demonstration.run(runs(upgrade_flow), runs(rollback_flow), approver, keep)
        if outcome.kind == "promoted":
            _what_next(page, keep)
    _end(outcome, False)


def _what_next(page: str, keep: bool) -> None:
    console.print("\nTry next, with .venv/bin on your PATH:")
    for line in (
        "llama-release status                     both stages and what is retained",
        "llama-release history                    everything that happened",
        "llama-release plan --to b11393           what another upgrade would do",
        "llama-release start                      production answers again (it was stopped with the demo)",
        "DEMO_KEEP=1 make demo                    leaves the servers and the Prefect page running",
    ):
        console.print(f"  {line}", markup=False)
    if keep:
        console.print(f"\nPrefect page {page} stays until you press Enter here; `llama-release stop` ends the servers.")
        sys.stdin.readline()


@contextmanager
def prefect_page(as_json: bool) -> Iterator[str]:
    """A Prefect server for this command; yields its page's address. With JSON, rows go to standard error."""
    console.stderr = as_json
    settings = load()
    console.print(f"[bold]llama-release[/]  {open_platform(settings).name} platform, store {settings.store.absolute()}")
    with prefect_server(settings.store) as page:
        yield page


def run_flow(flow: Flow[..., Any], page: str, approver: str | None, **parameters: Any) -> Outcome:
    """Run a flow here and give back what it came to; its approval is asked for at this terminal too."""
    with approver_at_the_terminal(approver) as tell:
        told: list[UUID] = []

        def started(flow: Any, flow_run: Any, state: Any) -> None:
            if not told:
                told.append(flow_run.id)
                console.print(f"  Prefect page {page}/v2/runs/flow-run/{flow_run.id}", soft_wrap=True)
                tell(flow_run.id)

        outcome = flow.with_options(on_running=[started])(**parameters)
    return Outcome.model_validate(outcome)


def _end(outcome: Outcome, as_json: bool) -> None:
    label = f" {outcome.release.label}" if outcome.release else ""
    console.print(f"\n[bold]{outcome.kind.replace('_', ' ')}[/]{label}")
    if outcome.note:
        console.print(outcome.note, markup=False, soft_wrap=True)
    if as_json:
        print(outcome.model_dump_json(indent=1))
    raise typer.Exit(outcome.exit_code)


def main() -> None:
    """The entry point.

    Exits 0 when done, 1 when the release failed, 2 on bad input, 3 when our tooling broke, 4 when a person rejected
    the release, 130 when interrupted.
    """
    try:
        app()
    except Problem as problem:
        print(f"\n{problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is lost: run it again", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
