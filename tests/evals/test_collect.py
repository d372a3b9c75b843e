"""The asking process, with real Inspect and a server on loopback that says what a test's script says."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.evals.collect import Asking, Book, Unanswered, others
from tasks.evals.families.family import number, tool
from tasks.evals.model import Ask, Call, Expectation, Item, ItemAnswer, Outcome
from tasks.release import BadInput, ToolingError
from tasks.settings import EvalSettings
from tests.endpoint.script import HANGUP, KEY, Reply, Seen, calls, says, server

USER_TASK = f"{Path(__file__).parent / 'user_task.py'}@capitals"
SETTINGS = EvalSettings(max_connections=1, tasks=(USER_TASK,))
PRICE = tool(
    "get_price", "A price.", {Call(name="get_price", arguments={"thing": "cup"}).key: "4 euros"}, thing="string"
)

Put = Callable[..., tuple[Book, Seen]]


@pytest.fixture(scope="module")
def asking() -> Iterator[Asking]:
    with Asking(SETTINGS) as process:
        yield process


@pytest.fixture
def put(asking: Asking, tmp_path: Path) -> Put:
    """Asks these items of a server with this script."""

    def ask(items: list[Item], *script: Reply) -> tuple[Book, Seen]:
        book = Book(tmp_path / "answers.jsonl")
        with server(*map(whole, script)) as seen:
            asking.ask(seen.endpoint, "model", items, book, lambda *_: None)
        return book, seen

    return ask


def whole(reply: Reply) -> Reply:
    """The reply with all that OpenAI's client insists on."""
    if not isinstance(reply.body, dict) or "choices" not in reply.body:
        return reply
    usage = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}
    more = {"object": "chat.completion", "created": 1, "model": "model", "usage": usage}
    return replace(reply, body=reply.body | more, headers={"Content-Type": "application/json"})


def item(ask: Ask, name: str = "sums/add/0") -> Item:
    family, template, _ = name.split("/")
    return Item(id=name, family=family, template=f"{family}/{template}", **ask.model_dump())


def thought(text: str) -> Reply:
    return says("", finish="length", reasoning_content=text)


@pytest.mark.wire
@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (says("It is 4."), Outcome.CORRECT),
        (says("It is 5."), Outcome.WRONG),
        (says("It is 4", finish="length"), Outcome.TRUNCATED),
        (thought("First I look at"), Outcome.THOUGHT_OUT),
        (calls("get_price", "{}"), Outcome.WRONG),
    ],
)
def test_each_ending_is_its_own_outcome(put: Put, reply: Reply, outcome: Outcome) -> None:
    book, _ = put([item(number("What is 2 + 2?", 4, tools=(PRICE,)))], reply, says("5"))
    assert book["sums/add/0"].outcome is outcome


@pytest.mark.wire
def test_what_is_sent_holds_the_item_and_nothing_of_the_answer(put: Put) -> None:
    asked = number(
        "Look at it.", 4, image="iVBORw0KGgo=", thinking_tokens=16, max_tokens=48, answer_schema={"type": "x"}
    )
    _, seen = put([item(asked)], says("4"))
    (body,) = seen.bodies
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert (body["temperature"], body["max_tokens"], body["thinking_budget_tokens"]) == (0, 48, 16)
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    assert body["response_format"]["json_schema"]["schema"] == {"type": "x"}
    assert "tools" not in body


@pytest.mark.wire
def test_calls_made_before_are_shown_and_tools_that_know_something_are_asked_on(put: Put) -> None:
    before = ((Call(name="get_price", arguments={"thing": "pen"}), "3 euros"),)
    turns = number("What do cup and pen cost?", 7, tools=(PRICE,), before=before)
    book, seen = put([item(turns)], calls("get_price", '{"thing": " Cup"}'), says("7"))
    roles = [m["role"] for m in seen.bodies[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]
    assert [m["content"] for m in seen.bodies[-1]["messages"] if m["role"] == "tool"] == ["3 euros", "4 euros"]
    assert book["sums/add/0"].text == "-> get_price(thing=' Cup')\n7"
    assert book["sums/add/0"].right


@pytest.mark.wire
def test_a_call_is_right_by_name_and_arguments(put: Put) -> None:
    wanted = Expectation(kind="calls", value=[{"name": "get_price", "arguments": {"thing": "cup"}}])
    offered = PRICE.model_copy(update={"results": {}})
    items = [item(Ask(prompt=f"Price {n}?", expected=wanted, tools=(offered,)), f"sums/a/{n}") for n in range(3)]
    replies = [calls("get_price", a) for a in ('{"thing": "cup"}', '{"thing": "pen"}', '{"thing":')]
    book, _ = put(items, *replies)
    assert [book[i.id].outcome for i in items] == [Outcome.CORRECT, Outcome.WRONG, Outcome.WRONG]


@pytest.mark.wire
@pytest.mark.parametrize(
    "reply", [HANGUP, Reply(500, {"error": {"message": "out of memory"}}), says("?", finish="odd")]
)
def test_a_request_that_failed_is_no_answer_and_not_kept(put: Put, reply: Reply, monkeypatch: Any) -> None:
    monkeypatch.setattr("tasks.evals.collect.RECOVERY_S", 0.1)
    with pytest.raises(Unanswered) as raised:
        put([item(number("?", 4)), item(number("!", 5), "sums/add/1")], reply, says("5"))
    (left,) = raised.value.answers
    assert (left.item, left.outcome) == ("sums/add/0", Outcome.ERRORED)
    assert left.error and KEY not in left.error


@pytest.mark.wire
def test_a_users_inspect_task_is_asked_and_judged_by_its_own_scorer(put: Put) -> None:
    items = others(SETTINGS).items
    assert (items[0].id, items[0].expected.value, items[0].family) == ("capitals/1", "Paris", "capitals")
    assert {i.template for i in items} == {"capitals/group 0", "capitals/group 1", "capitals/group 2"}
    book, seen = put(list(items[:3]), says("Paris, I think"), says("Paris"), says("To", finish="length"))
    assert [book[f"capitals/{n}"].outcome for n in (1, 2, 3)] == [Outcome.CORRECT, Outcome.WRONG, Outcome.TRUNCATED]
    assert seen.bodies[0]["max_tokens"] == 24
    assert len(seen.bodies) == 3


@pytest.mark.wire
def test_a_users_task_that_changes_makes_another_set(tmp_path: Path) -> None:
    source = (Path(__file__).parent / "user_task.py").read_text()
    mine = tmp_path / "mine.py"
    found = set()
    for text in (source, source, source.replace("includes()", "includes(ignore_case=False)")):
        mine.write_text(text)
        found.add(others(EvalSettings(tasks=(f"{mine}@capitals",))).digest)
    assert len(found) == 2


@pytest.mark.wire
@pytest.mark.parametrize("spec", ["nowhere.py@task", "json/decoder@JSONDecoder"])
def test_a_task_that_cannot_be_loaded_is_bad_input(spec: str) -> None:
    with pytest.raises(BadInput, match="cannot be loaded"):
        others(EvalSettings(tasks=(spec,)))


def test_a_book_survives_a_writer_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    program = (
        "import sys; from pathlib import Path; from tasks.evals.collect import Book; "
        "from tasks.evals.model import ItemAnswer, Outcome; book = Book(Path(sys.argv[1]))\n"
        "for n in range(100000): book.keep(ItemAnswer(item=str(n), outcome=Outcome.WRONG, text='x' * 3000))"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
    deadline = time.monotonic() + 60
    while (not path.exists() or path.stat().st_size < 20_000) and time.monotonic() < deadline:
        time.sleep(0.001)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with open(path, "ab") as file:
        file.write(b'{"item": "torn')
    book = Book(path)
    assert list(book) == [str(n) for n in range(len(book))] and len(book) > 5
    book.keep(ItemAnswer(item="next", outcome=Outcome.CORRECT))
    assert list(Book(path)) == [*book]
    assert Book(path)["next"].right
    path.write_bytes(b"?" + path.read_bytes())
    assert set(Book(path)) == set(book) - {"0"}


def test_a_book_on_a_disk_that_takes_nothing_is_a_tooling_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolingError, match="could not write"):
        Book(tmp_path / "file" / "answers.jsonl").keep(ItemAnswer(item="1", outcome=Outcome.WRONG))
