"""A release's report: what is in it, and that nothing of what others wrote becomes part of the page."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from tasks.release import (
    Approval,
    BadInput,
    Event,
    Hold,
    PatchResult,
    PatchStatus,
    Release,
    StagePointer,
    UpstreamRelease,
    Verdict,
    Verification,
    now,
)
from tasks.release_page import Cost, choose, clock, page, stages, story
from tasks.store import Store
from tasks.upstream.notes import Assessed, Assessment
from tasks.upstream.risk import Risk
from tests.hostile import ALPHABET, obeyed
from tests.test_release import a_release

EVIL = "<script>alert(1)</script><img src='http://evil.invalid/x'>\" onload=\"x " + " ".join(ALPHABET)
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """The elements of a page; an assertion fails where they do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def recorded(store: Store, release: Release) -> None:
    """A release that everybody who writes a text into its dossier wrote something evil into."""
    store.save_release(release)
    risky = Assessed(build=11410, pull=7, title=EVIL, areas=(), risk=Risk.MAY_BREAK_US, why=(EVIL,), touches=(EVIL,))
    notes = Assessment(low=11401, high=11434, until=11434, changes=(risky,))
    detail = {"seconds": 1.5, "target": "b11434", "notes": notes.model_dump(mode="json")}
    store.log(Event(kind="stage.upstream", summary="1 change read", detail=detail))
    store.log(Event(kind="stage.build", summary=f"reused: {EVIL}", detail={"seconds": 90.0}))
    store.log(
        Event(kind="stage.evals", release=release.id, summary="no worse", detail={"seconds": 60.0, "verdict": "passed"})
    )
    patch = PatchResult(file="0001-x.patch", title=EVIL, status=PatchStatus.REBASED, evidence=EVIL, detail=EVIL)
    answer = {
        "item": "tools/1",
        "gained": False,
        "prompt": EVIL,
        "expected": EVIL,
        "production": EVIL,
        "candidate": EVIL,
    }
    family = {
        "family": "all", "items": 40, "decides": True, "margin": 0.03, "candidate": 19, "protects": "", "truncated": 0,
        "thought_out": 0, "production": 20, "lost": 1, "gained": 0, "verdict": "passed", "blind": False,
        "interval": {"estimate": -0.025, "low": -0.1, "high": 0.05},
    }  # fmt: skip
    side = {"answers": 40, "tokens": 3000, "seconds": 20.0, "money": 0.25}
    evals = {
        "families": [family],
        "looks": [(40, -0.025, -0.1, 0.05)],
        "discordant": [answer],
        "cost": {"candidate": side},
    }
    difference = {
        "kind": "flag",
        "what": "removed",
        "names": ["--gone"],
        "gone": True,
        "evidence": EVIL,
        "used_by": [EVIL],
        "fails": True,
    }
    for name, verdict, evidence in (
        ("patches", Verdict.PASSED, {"patches": [patch.model_dump(mode="json")]}),
        ("surface", Verdict.FAILED, {"differences": [difference], "against": None}),
        ("contracts.chat.answers", Verdict.PASSED, {}),
        ("contracts.chat.stops", Verdict.FAILED, {}),
        ("evals", Verdict.PASSED, evals),
    ):  # fmt: skip
        found = Verification(
            name=name, release=release.id, verdict=verdict, summary=EVIL, promise=EVIL, evidence=evidence
        )
        store.record(found)
    store.save_approval(
        Approval(
            release=release.id, dossier="d1", expected=None, request="r1", decision="approve", approver=EVIL, note=EVIL
        )
    )


def test_the_page_needs_nothing_else_and_what_others_wrote_stays_text(store: Store) -> None:
    release = a_release(alias=EVIL, argv=("--alias", EVIL))
    recorded(store, release)
    made = Page(page(store, release))
    assert obeyed(page(store, release)) == []
    assert {tag for tag, _ in made.elements}.isdisjoint({"script", "link", "iframe", "object", "img"})
    assert made.text.count("alert(1)") == page(store, release).count("alert(1)") > 15
    for _, attributes in made.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert str(attributes.get("href") or attributes.get("src") or "#")[0] == "#"
    targets = {str(a["href"])[1:] for _, a in made.elements if "href" in a}
    assert targets == {a["id"] for tag, a in made.elements if tag == "section"}


def test_the_page_tells_times_cost_patches_surface_contracts_plots_answers_approval_and_ledger(store: Store) -> None:
    release = a_release()
    recorded(store, release)
    text = page(store, release, [Cost("staging", 100.0, 0.5), Cost("trial", 20.0, 0.25)])
    said = Page(text).text
    for words in (
        "1:30", "2:32 in all", "0.75 USD", "0.25", "0001-x.patch", "--gone", "chat: 1 kept, 1 not", "stops",
        "candidate minus production", "seconds to the first token", "lost", "dossier d1", "stage.build",
    ):  # fmt: skip
        assert words in said
    assert text.count("<svg") == 2


def test_a_release_of_which_nothing_is_known_but_its_name_has_a_page(store: Store) -> None:
    assert "Nobody was asked" in Page(page(store, a_release())).text


def test_the_lines_before_a_run_knew_its_release_are_the_releases_and_nobody_elses() -> None:
    def event(kind: str, release: str | None = None, **detail: object) -> Event:
        return Event(kind=kind, release=release, summary=kind, detail={"seconds": 1.0, **detail})

    ledger = [
        event("stage.upstream", target="b1"), event("stage.build"), event("stage.preflight", "one"),
        event("stage.contracts", error="ReleaseFailed"), event("stage.rollback", error="BadInput"),
        event("stage.upstream", target="b2"), event("stage.build", error="ReleaseFailed"),
        event("stage.upstream", target="b2"), event("stage.build"), event("stage.preflight", "two"),
        event("hold_lifted"),
        event("stage.upstream", target="b1"), event("stage.build"), event("stage.preflight", "one"),
        event("promoted", "one"),
    ]  # fmt: skip
    assert [ledger.index(each) for each in story(ledger, "one")] == [0, 1, 2, 3, 11, 12, 13, 14]
    assert [ledger.index(each) for each in story(ledger, "two")] == [7, 8, 9]
    rows = stages(story(ledger, "one"))
    assert [(r.name, r.verdict, r.seconds, r.runs) for r in rows] == [
        ("upstream", "done", 2.0, 2), ("build", "done", 2.0, 2), ("preflight", "done", 2.0, 2),
        ("contracts", "stopped", 1.0, 1),
    ]  # fmt: skip


def test_a_release_is_named_by_its_id_or_its_tag_and_productions_is_meant_without(store: Store) -> None:
    older = a_release(upstream=UpstreamRelease(build=11401, stable="v0.5.0"))
    newer, other = a_release(), a_release(alias="other")
    for release in (older, newer, other):
        store.save_release(release)
    with pytest.raises(BadInput, match="nothing is in production"):
        choose(store, None)
    with pytest.raises(BadInput, match="2 releases are called b11434"):
        choose(store, "b11434")
    hold = Hold(reason="slow", by="carol")
    store.save_pointer(StagePointer(stage="production", release=newer.id, since=now(), hold=hold))
    assert choose(store, None) == choose(store, "b11434") == choose(store, newer.id) == newer
    assert choose(store, "v0.5.0") == choose(store, "b11401") == choose(store, "11401") == older
    assert choose(store, other.id) == choose(store, other.id[:4]) == other
    with pytest.raises(BadInput, match="there is no release b1 "):
        choose(store, "b1")
    assert "on hold: slow" in page(store, newer)


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.24, "4.2 s"), (59.96, "1:00"), (125, "2:05"), (119.7, "2:00"), (3725, "1:02:05")]
)
def test_times_are_told_as_people_read_them(seconds: float, said: str) -> None:
    assert clock(seconds) == said
