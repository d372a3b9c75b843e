"""Text that others wrote, in each place where a person reads it: it is shown, and it is nothing but text there."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import groupby

import pytest
from hypothesis import example, given
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tasks import console as terminal
from tasks.console import Terminal, one_line, show_table, styled, visible
from tasks.evals import shown
from tasks.notify import Notice, Outbox, Slack, open_channel
from tasks.preflight.compare import What
from tasks.release import Dossier, Verdict, Verification
from tasks.report import code, dossier_markdown, fenced, markdown, markdown_table, show_dossier
from tasks.settings import NotifySettings
from tasks.upstream.notes import Assessed, Assessment, digest
from tasks.upstream.risk import Risk
from tasks.upstream.treediff import TreeDiff
from tasks.upstream.treediff.compare import TreeChange
from tasks.upstream.treediff.facts import Kind
from tests.conftest import ends_within
from tests.fakes.slack import TOKEN, FakeSlack, fake_slack
from tests.hostile import ALPHABET, obeyed, texts
from tests.test_release import a_release

EVERYTHING = " ".join(ALPHABET)


def assert_read(text: str, said: str) -> None:
    """Every word of the text is there to be read, in order, and nothing in it was obeyed."""
    assert obeyed(said) == []
    assert "".join(one_line(text).split()) in "".join(said.split())


# -- a terminal ---------------------------------------------------------------------------------------------


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 10,000 columns with colours is sent."""
    sent = io.StringIO()
    monkeypatch.setattr(
        terminal, "console", Terminal(file=sent, force_terminal=True, color_system="standard", width=10_000)
    )
    return sent


def printed(screen: io.StringIO, show: Callable[[str], None], text: str) -> str:
    """What is sent, without the colours: none that the same line with an `x` for the text does not have."""
    show("x")
    colours = set(re.findall(r"\x1b\[[\d;]*m", screen.getvalue()))
    screen.seek(0)
    screen.truncate()
    show(text)
    said = screen.getvalue()
    screen.seek(0)
    screen.truncate()
    assert set(re.findall(r"\x1b\[[\d;]*m", said)) <= colours
    return re.sub(r"\x1b\[[\d;]*m", "", said)


def test_a_line_a_table_and_a_styled_word_are_text_in_a_terminal(screen: io.StringIO) -> None:
    for text in (*ALPHABET, EVERYTHING):
        for show in (
            lambda text: terminal.console.print(text),
            lambda text: show_table(text, ("a" * 2000,), [("b",)]),
            lambda text: show_table("t", ("a", "b"), [("c", text)]),
            lambda text: show_table("t", ("a", "b"), [(styled(text, "cyan"), "")]),
        ):
            assert_read(text, printed(screen, show, text))


def test_a_dossier_is_text_in_a_terminal(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.report.show_table", terminal.show_table)
    assert_read(EVERYTHING, printed(screen, lambda text: show_dossier(a_dossier(text)), EVERYTHING))


@pytest.mark.parametrize("text", ["plain", "n_ctx[0] <x>", "日本語 é", "a\tb\nc"])
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_what_cannot_be_seen_is_spelled_out() -> None:
    assert visible("\x1b[2J\x9b\u202e\u200b\ud800\x7f\r") == r"\x1b[2J\x9b\u202e\u200b\ud800\x7f\r"
    assert visible("a\u00a0b\r\nc\u2009d") == "a b\nc d"
    assert one_line("  a\n\n b\tc \r\n") == "a b c"


# -- Markdown -----------------------------------------------------------------------------------------------

GITHUB = MarkdownIt("gfm-like", {"html": True})


def structure(page: str) -> list[tuple[str, str, int]]:
    """What a page is made of, but for its text: code is text in another letter."""

    def parts(tokens: list[Token]) -> Iterator[Token]:
        for token in tokens:
            yield token
            yield from parts(token.children or [])

    kinds = [(t.type, t.tag, t.nesting) for t in parts(GITHUB.parse(page)) if t.type != "inline"]
    text = {"text", "code_inline", "text_special"}
    return [kind for kind, _ in groupby(("text", "", 0) if kind[0] in text else kind for kind in kinds)]


def letters(page: str) -> str:
    """All that is to be read of a page."""
    tokens = GITHUB.parse(page)
    return "".join(c.content for t in tokens for c in t.children or [t])


PLACES: dict[str, Callable[[str], str]] = {
    "a cell": lambda text: markdown_table(("a", "b"), [("x", text), (text, "y")]),
    "a list": lambda text: f"- x\n- {markdown(text)}\n- y",
    "a heading": lambda text: f"## {markdown(text)}\n\nz",
    "a paragraph": lambda text: f"x\n{markdown(text)}\ny",
    "a strong line": lambda text: f"x **{markdown(text)}** y",
    "folded": lambda text: f"<details><summary>x</summary>\n\n{markdown(text)}\n\n</details>",
    "code in a line": lambda text: f"x {code(text)} y",
    "a block of code": lambda text: f"x\n\n{fenced(text)}\n\ny",
}


@pytest.mark.parametrize("place", PLACES)
@given(text=texts)
@example(text=EVERYTHING)
@example(text="\\|`|https://evil.invalid`|\\")
@example(text="`https://evil.invalid`www.evil.invalid|a@b")
@example(text="__init__ *a* _b_ 1. x")
def test_a_text_is_text_wherever_it_stands_in_a_page(place: str, text: str) -> None:
    if not one_line(text):
        return
    page = PLACES[place](text)
    assert obeyed(page) == []
    assert structure(page) == structure(PLACES[place]("x"))
    assert "".join(one_line(text).split()) in "".join(letters(page).split())


@pytest.mark.parametrize("piece", ALPHABET)
def test_every_piece_is_text_in_a_table(piece: str) -> None:
    if one_line(piece):
        assert structure(PLACES["a cell"](piece)) == structure(PLACES["a cell"]("x"))


def test_what_is_harmless_can_still_be_read_in_the_source_of_a_page() -> None:
    cell = "n_ctx of --no-mmap: +0.4 points, 3 kept (sha256 0a1b2c; tasks/store.py) & more"
    assert markdown_table(("a",), [(cell,)]).endswith(f"| {cell} |")


def test_a_page_does_not_take_long_for_a_long_word() -> None:
    with ends_within(5.0):
        assert len(markdown("a" * 1_000_000 + "@")) == 1_000_003


def a_dossier(text: str) -> Dossier:
    release = a_release(argv=("--alias", text))
    found = tuple(
        Verification(name=f"a{n}", release=release.id, verdict=verdict, summary=text)
        for n, verdict in enumerate(Verdict)
    )
    return Dossier(release=release, required=("a0",), verifications=found)


def the_gate(text: str) -> Verification:
    answer = {
        "item": text, "gained": False, "prompt": text, "expected": text, "production": text, "candidate": text,
    }  # fmt: skip
    evidence = {"discordant": [answer], "errors": [{"side": "candidate", "item": text, "error": text}]}
    return Verification(name="evals", release="r", verdict=Verdict.FAILED, summary=text, evidence=evidence)


def the_notes(text: str) -> Assessment:
    changes = [
        Assessed(build=2, pull=7, title=text, areas=(), risk=risk, why=(text,), touches=(text,))
        for risk in (Risk.MAY_BREAK_US, Risk.TOUCHES_US)
    ]
    return Assessment(low=1, high=2, until=2, changes=tuple(changes))


def the_trees(text: str, problem: str = "") -> Assessment:
    changes = [
        TreeChange(
            kind=kind, what=What.CHANGED, name=text, was=text, now=text, text=text, at_old=text, at_new=text,
            fields=(text,), touches=(text,), explained=(text,), risk=risk,
        )
        for kind in (Kind.FLAG, Kind.ERROR)
        for risk in (Risk.MAY_BREAK_US, Risk.MAY_BREAK, Risk.TOUCHES_US)
    ]  # fmt: skip
    trees = TreeDiff(old="", new="", changes=tuple(changes), unknown=(text,), problem=problem)
    return the_notes(text).model_copy(update={"trees": trees})


@pytest.mark.parametrize("text", [EVERYTHING, EVERYTHING[::-1]])
@pytest.mark.parametrize(
    "page",
    [
        lambda text: digest(the_trees(text)),
        lambda text: digest(the_trees(text, problem=text)),
        lambda text: dossier_markdown(a_dossier(text), text),
        lambda text: shown.markdown(the_gate(text)),
        lambda text: digest(the_notes(text)),
        lambda text: digest(Assessment(low=1, high=2, until=1, problem=text)),
    ],
)
def test_what_a_person_reads_before_deciding_is_text(page: Callable[[str], str], text: str) -> None:
    assert obeyed(page(text)) == []
    assert structure(page(text)) == structure(page("x"))


# -- Slack --------------------------------------------------------------------------------------------------


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlack]:
    monkeypatch.setenv("SLACK_BOT_TOKEN", TOKEN)
    with fake_slack() as found:
        yield found


@pytest.mark.wire
@pytest.mark.parametrize("text", [EVERYTHING, EVERYTHING * 20, "<!channel>" * 2000])
def test_a_message_is_text_in_slack(slack: FakeSlack, text: str) -> None:
    channel = open_channel(NotifySettings(slack_channel="#releases", slack_api_url=slack.url))
    assert isinstance(channel, Slack)
    notice = Notice(thread="b1", title=text, text=text, link=f"http://x/{EVERYTHING}", command=EVERYTHING)
    channel.deliver(notice, Outbox(after=""))
    (message,) = slack.messages
    said = [block["text"] for block in message["blocks"]]
    assert [each["type"] for each in said] == ["plain_text", "plain_text", "mrkdwn", "mrkdwn"]
    assert [each.get("emoji") for each in said[:2]] == [False, False]
    assert all(each["verbatim"] for each in said[2:])
    assert message["mrkdwn"] is False
    assert re.fullmatch(r"<http://x/[^<>|]*\|look and decide>", said[2]["text"])
    assert re.fullmatch(r"`[^<>`]*`", said[3]["text"])
    for each in (message["text"], *(each["text"] for each in said[:2])):
        assert not re.search(r"[<>]|&(?!(amp|lt|gt);)", each)
        assert obeyed(each) == []
    if text is EVERYTHING:
        read = said[1]["text"].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert_read(text, read)


def test_json_for_another_program_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json({"text": EVERYTHING})
    said = capsys.readouterr().out
    assert said.isascii()
    assert obeyed(said) == []
    assert json.loads(said) == {"text": EVERYTHING}
