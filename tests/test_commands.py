"""Every command, on a store and an upstream that somebody wrote into who wants to be more than text."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import typer

from flows import demo
from flows.__main__ import app, main
from tasks import console as terminal
from tasks.release import Approval, Event, Hold, Release, Request, StagePointer, Verdict, now
from tasks.store import Store
from tests.endpoint.script import says, server
from tests.fakes.github import FakeGithub, fake_github
from tests.hostile import ALPHABET, FORGED, obeyed
from tests.test_release import a_release, seen
from tests.test_start import commands

pytestmark = pytest.mark.wire

WRITABLE = [piece for piece in ALPHABET if "\0" not in piece]
"""An argument, a commit and a file's name hold no NUL."""
TEXT = " ".join(WRITABLE)
SHORT = "[/red]\x1b[2J\u202e\n" + FORGED
RUN = "00000000-0000-4000-8000-000000000000"

COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "status": (("status",), ("status", "--json")),
    "history": (("history", "--last", "1000"), ("history", "--json")),
    "approve": (("approve", RUN, "--by", TEXT), ("approve", SHORT, "--by", TEXT), ("approve", "gone", "--by", "me")),
    "report": (("report",), ("report", SHORT)),
    "rebuild": (("rebuild", SHORT), ("rebuild", "b1")),
    "plan": (("plan", "--to", "b10602"), ("plan", "--to", "b10602", "--json"), ("plan", "--to", SHORT)),
    "upstream between": (
        ("upstream", "between", "b10601", "b10602"), ("upstream", "between", "b10601", "b10602", "--all"),
        ("upstream", "between", "b10601", "b10602", "--json"), ("upstream", "between", SHORT, TEXT),
    ),
    "upstream since": (("upstream", "since", "b10601", "--markdown"), ("upstream", "since", SHORT)),
    "upgrade": (("upgrade", "--to", "b10602"),),
    "rollback": (("rollback", "--reason", TEXT[:400], "--by", SHORT, "--to", "0" * 12),),
    "redeploy": (("redeploy", "--reason", SHORT, "--by", SHORT),),
    "watch": (("watch",), ("watch", "--json")),
    "patches": (("patches", "--to", "b10602"), ("patches", "--to", SHORT)),
    "patches refresh": (("patches", "refresh", "--to", "b10602"),),
    "patches retire": (("patches", "retire", SHORT, "--to", "b10602"),),
    "patches edit": (("patches", "edit", SHORT, "--to", "b10602"), ("patches", "edit", "--abort")),
    "patches add": (
        ("patches", "add", "-", "--to", "b10602", "--title", TEXT, "--why", TEXT, "--waive", TEXT, "--by", TEXT),
        ("patches", "add", SHORT, "--to", "b10602", "--by", SHORT),
        ("patches", "add", SHORT, "--commit", TEXT, "--by", TEXT),
    ),
    "patches import": (
        ("patches", "import", SHORT, "--to", "b10602", "--by", SHORT),
        ("patches", "import", ".", "--since", SHORT, "--to", "b10602", "--by", TEXT),
    ),
    "patches drop": (("patches", "drop", SHORT, "--reason", TEXT, "--to", "b10602"),),
    "patches reorder": (("patches", "reorder", SHORT, TEXT, "--to", "b10602"),),
    "patches fold": (("patches", "fold", SHORT, TEXT, "--to", "b10602"),),
    "patches export": (("patches", "export", SHORT, "--to", "b10602"),),
    "patches watch": (("patches", "watch"), ("patches", "watch", "--json")),
    "import": (
        ("import", "--", "llama-server", "-m", TEXT, "--alias", SHORT),
        ("import", "--json", "--", "llama-server", TEXT),
        ("import", "--compose", SHORT, "--service", TEXT), ("import", "--unit", SHORT), ("import", "--url", SHORT),
        ("import", "--map", SHORT, "--", "sh", "-c", TEXT),
    ),
    "start": (("start",),),
    "stop": (("stop",),),
    "contracts": (("contracts", "--against", SHORT), ("contracts", "--against", "http://127.0.0.1:1")),
    "doctor": (("doctor", "--argv", TEXT),),
    "explain": (("explain", TEXT), ("explain", f"CUDA error: out of memory {SHORT}")),
    "cost": (("cost", SHORT),),
    "conformance": (("conformance", "--yes"), ("conformance", "--yes", "--json")),
    "hold lift": (("hold", "lift", "--by", SHORT),),
    "hub update": (("hub", "update"),),
}  # fmt: skip
SAY_ONLY_OURS = ("demo", "serve")
"""Their runs are the flows above; what the demo's server answers has its own test."""


@pytest.fixture(scope="module")
def github(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGithub]:
    """Two builds, and between them a commit for each thing that somebody may write into its subject."""
    with fake_github(tmp_path_factory.mktemp("github")) as github:
        github.commit("first (#1)", {"CMakeLists.txt": "project(x)\n"})
        github.release("b10601", "2026-11-01T12:00:00Z", prerelease=True)
        for n, piece in enumerate(WRITABLE):
            github.commit(f"server : remove --alias {piece} (#{100 + n})", {"tools/x.cpp": f"int x{n};\n"})
        github.release("b10602", "2026-11-02T12:00:00Z", prerelease=True)
        yield github


@pytest.fixture
def written_into(store: Store, tmp_path: Path, github: FakeGithub, page: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose every text is hostile, and the settings for it."""
    series = tmp_path / "patches"
    series.mkdir()
    (series / "series").write_text("")
    for name, value in {
        "STORE": store.root, "CACHE": tmp_path / "cache", "PATCHES": series, "UPSTREAM__KIND": "github",
        "UPSTREAM__API_URL": github.url, "SERVER__ALIAS": TEXT,
        "LOCAL__STAGING_PORT": "0", "LOCAL__PRODUCTION_PORT": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"LLAMA_RELEASE_{name}", str(value))
    monkeypatch.setenv("PREFECT_API_URL", f"{page}/api")
    monkeypatch.chdir(tmp_path)
    fill(store)
    return store


def fill(store: Store) -> None:
    release, before = a_release(alias=TEXT, argv=("--alias", TEXT)), a_release(tree="u" * 40)
    old = Release.model_validate(release.model_dump() | {"upstream": {"build": 10601}})
    for each in (release, before, old):
        store.save_release(each)
    store.save_pointer(
        StagePointer(
            stage="production", release=old.id, retained=(before.id,), since=now(), hold=Hold(reason=TEXT, by=TEXT)
        )
    )
    store.save_pointer(StagePointer(stage="staging", release=release.id, since=now()))
    for n, verdict in enumerate(Verdict):
        store.record(seen(f"contracts.chat.a{n}", verdict, TEXT).model_copy(update={"release": release.id}))
    store.log(Event(kind="stage.build", release=old.id, summary=SHORT, detail={"seconds": 1.0}))
    store.log(Event(kind="stage.evals", release=old.id, summary=TEXT, detail={"seconds": 1.0, "error": TEXT}))
    store.save_request(
        Request(
            run=RUN, name=TEXT, api_url="http://127.0.0.1:9/api", link=f"http://127.0.0.1:9/{TEXT}", suspended=True,
            tag="b11434", release=release.id, dossier=store.dossier(release, ("contracts.chat.a0",)).digest,
            required=("contracts.chat.a0",), expected=old.id, asked_at=now(), expires_at=now() + timedelta(days=1),
            reason=TEXT,
        )
    )  # fmt: skip
    store.save_approval(
        Approval(release=old.id, dossier="d", expected=None, request="r", decision="reject", approver=TEXT, note=TEXT)
    )


def said_by(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """All that a command says, on both streams. It ends as a command ends, with no traceback."""
    monkeypatch.setattr(sys, "argv", ["llama-release", *words])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode(errors="replace")), "utf-8"))
    monkeypatch.setattr(terminal.console, "_width", 100_000)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (None, 0, 1, 2, 3, 10), words
    said = capfd.readouterr()
    return said.out + said.err


@pytest.mark.parametrize("words", [words for each in COMMANDS.values() for words in each])
@pytest.mark.usefixtures("written_into")
def test_a_command_shows_text_as_text(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = said_by(words, monkeypatch, capfd)
    assert obeyed(said) == []
    assert [line for line in said.splitlines() if line.lstrip("#|-1. ").startswith(FORGED) and line[0] != " "] == []


def test_no_command_is_left_out() -> None:
    assert {*commands(typer.main.get_command(app))} == {*COMMANDS, *SAY_ONLY_OURS, "hold", "hub", "upstream"}


@pytest.mark.usefixtures("written_into")
def test_what_was_written_can_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for piece in ALPHABET:
        store.log(Event(kind="promoted", summary=piece))
    history = said_by(("history", "--last", "1000"), monkeypatch, capfd)
    for piece in ALPHABET:
        assert "".join(terminal.one_line(piece).split()) in "".join(history.split()), repr(piece)
    for words in (("status",), ("hold", "lift", "--by", "me")):
        said = said_by(words, monkeypatch, capfd)
        assert r"[/red] [/] [bold red]x[/]" in said
        assert r"\x1b[2J\x1b[1A\x1b[31m" in said


def test_what_a_model_answers_in_the_demo_is_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal.console, "_width", 100_000)
    monkeypatch.setattr(terminal.console, "stderr", False)  # a command with --json has left it so
    with server(says(TEXT)) as model:
        demo.chat(model.endpoint)
    said = capsys.readouterr().out
    assert obeyed(said) == []
    assert len(said.splitlines()) == 3
    assert terminal.one_line(TEXT) in said
