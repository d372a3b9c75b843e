"""The release's own chat template: what is compared with jinja2's rendering, and what a template may not do to us."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tasks.contracts import reading
from tasks.contracts.promises import CONTRACTS, Recorder, verify
from tasks.contracts.rendering import render
from tasks.release import Endpoint, Release, UpstreamRelease, Verdict, Verification
from tests.fakes.listening import Answering, listening

RELEASE = Release(upstream=UpstreamRelease(build=1), tree="t", build="b", argv=(), files={}, alias="m")
Turns = list[dict[str, Any]]
Rewrite = Callable[[Turns], Turns]
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS
DEAF_TO_SYSTEM = TURNS.replace("messages %}", "messages if m.role != 'system' %}")
OF_PARTS = TURNS.replace("{{ m.content }}", "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}")
DATED = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}" + TURNS
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GREEDY = "{% set n = namespace(s='x') %}{% for a in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"
LONG = "{% for a in range(99999) %}{{ 'x' * 99 }}{% endfor %}"


def as_given(turns: Turns) -> Turns:
    return turns


def merged(turns: Turns) -> Turns:
    """As llama.cpp does where a template has no system role."""
    if turns[0]["role"] != "system":
        return turns
    return [{**turns[1], "content": turns[0]["content"] + "\n" + turns[1]["content"]}, *turns[2:]]


def in_parts(turns: Turns) -> Turns:
    return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


@contextmanager
def serving(template: str, rewrite: Rewrite, edit: Callable[[str], str] = str) -> Iterator[Recorder]:
    """A server that has this template, and renders it of turns that it has rewritten."""

    class Handler(Answering):
        def do_GET(self) -> None:
            self.say(_json({"chat_template": template, "bos_token": "<s>", "eos_token": "</s>", "status": "ok"}))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            turns = rewrite(copy.deepcopy(asked["messages"]))
            prompt, why = render(template.replace("strftime_now is defined", "false"), {"messages": turns})
            self.say(_json({"prompt": edit(prompt)}), 500 if why else 200)

    with listening(Handler) as url, Recorder(Endpoint(base_url=url)) as client:
        yield client


def _json(said: Any) -> bytes:
    return json.dumps(said).encode()


def asked(client: Recorder, name: str = "template_of_release") -> Verification:
    return verify(CONTRACTS[f"contracts.reading.{name}"], client, RELEASE, subject=RELEASE, basis="0")


@pytest.mark.parametrize(
    ("template", "rewrite", "says"),
    [
        (TURNS, as_given, "5 conversations rendered"),
        (NO_SYSTEM, merged, "4 conversations rendered"),
        (DEAF_TO_SYSTEM, merged, "4 conversations rendered"),
        (OF_PARTS, in_parts, "1 conversations rendered"),  # of the empty turn nothing is lost
        (DATED, as_given, "nothing to compare: it asks for what jinja2 has not"),
        ("{% generation %}" + TURNS + "{% endgeneration %}", as_given, "nothing to compare"),
        ("{{ 1 + 'a' }}" + TURNS, as_given, "nothing to compare: TypeError"),
        ("{% no such tag %}", as_given, "nothing to compare: TemplateSyntaxError"),
        (LONG, as_given, "nothing to compare: a prompt of 9899901 characters"),
    ],
    ids=["plain", "no system role", "deaf to system", "parts", "dated", "generation", "type", "syntax", "long"],
)
def test_a_right_server_is_right_whatever_template_it_has(template: str, rewrite: Rewrite, says: str) -> None:
    with serving(template, rewrite) as client:
        found = asked(client)
    assert found.verdict is Verdict.PASSED, found.summary
    assert says in found.summary


def test_a_server_may_leave_out_the_tokens_that_its_tokenizer_adds() -> None:
    with serving("{{ '<s>' }}" + TURNS + "</s>", as_given, lambda s: s[len("<s>") : -len("</s>")]) as client:
        assert asked(client).summary == "5 conversations rendered as jinja2 does"


@pytest.mark.parametrize("template", [ENDLESS, GREEDY], ids=["time", "memory"])
def test_a_template_has_so_much_time_and_memory(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_RENDER_CPU_S", 2)
    with serving(template, as_given) as client:
        found = asked(client)
    assert (found.verdict, "nothing to compare" in found.summary) == (Verdict.PASSED, True)


def test_another_prompt_than_the_templates_is_unmet() -> None:
    with serving(TURNS, as_given, lambda prompt: prompt.replace("<user>", "<User>")) as client:
        found = asked(client)
    assert found.verdict is Verdict.FAILED
    assert "one turn: the server renders '<User>Hi<assistant>', jinja2 '<user>Hi<assistant>'" in found.summary


def test_gemma_4s_own_template_must_render() -> None:
    with serving(NO_SYSTEM, merged) as client:
        found = asked(client, "template")
    assert found.verdict is Verdict.FAILED
    assert "a system message: jinja2 does not render the server's chat template: TemplateError" in found.summary
