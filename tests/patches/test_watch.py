"""The nightly look at the newest upstream, as Prefect runs it, told in a Slack on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tasks.patches.watch
from flows.outcome import Outcome
from flows.patches_watch import patches_watch
from tasks.release import Change
from tasks.sources import WHOLE
from tasks.store import Store
from tests.fakes.slack import TOKEN, FakeSlack, fake_slack
from tests.patches.conftest import World
from tests.patches.test_classify import CHAT, PATCHED, SIBLINGS
from tests.patches.test_life import CONFLICTING, Here

pytestmark = pytest.mark.wire


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlack]:
    with fake_slack() as found:
        monkeypatch.setenv("SLACK_BOT_TOKEN", TOKEN)
        monkeypatch.setenv("LLAMA_RELEASE_NOTIFY__SLACK_CHANNEL", "#releases")
        monkeypatch.setenv("LLAMA_RELEASE_NOTIFY__SLACK_API_URL", found.url)
        yield found


def build(world: World, number: int, files: dict[str, str]) -> None:
    world.upstream(number, {WHOLE: f"b{number}\n", CHAT: f"// b{number}\n" + files[CHAT]})


@pytest.mark.usefixtures("page")
def test_people_are_told_once_on_the_day_that_a_patch_breaks_and_once_when_it_fits_again(
    world: World, slack: FakeSlack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.root)
    for name, value in {"PATCHES": world.folder, "STORE": world.root / "store", "CACHE": world.root / "own"}.items():
        monkeypatch.setenv(f"LLAMA_RELEASE_{name}", str(value))
    monkeypatch.setattr(tasks.patches.watch, "open_upstream", lambda _: Here(world))
    build(world, 100, SIBLINGS)
    world.patch(100, {WHOLE: "b100\n", CHAT: "// b100\n" + PATCHED[CHAT]}, "0001-tags.patch")

    def look() -> str:
        found = Outcome.model_validate(patches_watch())
        assert found.kind == "watched"
        return found.note

    build(world, 105, SIBLINGS)
    assert look() == ""
    for number in range(106, 112):
        build(world, number, SIBLINGS if number < 109 else CONFLICTING)
    world.changes.append(Change(build=109, pull=4711, title="chat : another end tag"))
    assert look() == look() == "broken: 0001-tags.patch"
    build(world, 112, SIBLINGS)
    assert look() == ""

    kinds = [event.kind for event in Store(world.root / "store").ledger()]
    assert kinds == ["patches_looked", "patches_broke", "patches_looked", "patches_mended"]
    assert slack.titles() == ["b111: a patch of ours is broken", "b112: our patches fit again"]
    assert "b109 broke it: b109 #4711 chat : another end tag" in str(slack.messages[0]["blocks"])
    assert "`llama-release patches --to b111 --culprit`" in str(slack.messages[0]["blocks"])
