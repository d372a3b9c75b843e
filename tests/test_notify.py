"""The real slack_sdk against a Slack on loopback."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tasks import notify
from tasks.doctor import stored, warning
from tasks.notify import Notice, Outbox, Sent, Slack, Undelivered, catch_up, following, open_channel
from tasks.release import BadInput, Event, Release, ToolingError, UpstreamRelease, now
from tasks.settings import NotifySettings
from tasks.store import Store
from tests.fakes.slack import TOKEN, FakeSlack, fake_slack
from tests.platforms.stand import until

START = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def slack() -> Iterator[FakeSlack]:
    with fake_slack() as found:
        yield found


@pytest.fixture
def settings(slack: FakeSlack, monkeypatch: pytest.MonkeyPatch) -> NotifySettings:
    monkeypatch.setenv("SLACK_BOT_TOKEN", TOKEN)
    return NotifySettings(slack_channel="#releases", slack_api_url=slack.url)


@pytest.fixture
def book(store: Store, settings: NotifySettings) -> Book:
    catch_up(store, open_channel(settings))
    return Book(store)


def later(minutes: float) -> datetime:
    """So long after now: what is tried again says when by the clock."""
    return now() + timedelta(minutes=minutes)


class Book:
    """A ledger that a test writes, a minute an event."""

    def __init__(self, store: Store) -> None:
        self.store, self.minutes = store, 0

    def add(self, kind: str, summary: str = "what was seen", *, release: str | None = None, **detail: object) -> None:
        self.minutes += 1
        at = START + timedelta(minutes=self.minutes)
        self.store.log(Event(kind=kind, release=release, summary=summary, detail=detail, at=at))

    def started(self, target: str = "b11434") -> None:
        self.add("stage.upstream", "production b11401, 33 newer", target=target)


pytestmark = pytest.mark.wire


def test_a_release_is_one_thread_from_its_start_to_production(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    channel = open_channel(settings)
    book.started()
    catch_up(book.store, channel)
    book.add("stage.build", "208 objects")
    book.add("stage.preflight", verdict="passed")
    book.add("stage.evals", "no more than noise", verdict="inconclusive")
    book.add("approval_wanted", "dossier 7f3a9c waits", link="http://127.0.0.1:4200/run/1")
    book.add("approved", "ada: approve")
    book.add("promoted", "b11434 is in production")
    catch_up(book.store, channel)
    root = slack.messages[0]["ts"]
    assert "thread_ts" not in slack.messages[0]
    assert slack.titles(thread=root) == [
        "b11434: evals inconclusive",
        "b11434: approval wanted",
        "b11434: approved",
        "b11434: promoted",
    ]
    assert "<http://127.0.0.1:4200/run/1|look and decide>" in str(slack.messages[2]["blocks"])
    book.started("b11440")
    catch_up(book.store, channel)
    assert "thread_ts" not in slack.messages[-1]


def test_whoever_has_not_decided_is_reminded_each_time_anew_with_the_command_and_told_of_the_end(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    book.started()
    command = "llama-release approve 7f3a"
    for kind, told in (("reminder", "since 8:00"), ("reminder", "since 8:00; again"), ("withdrawn", "staging failed")):
        book.add(f"approval_{kind}", told, link="http://127.0.0.1:4200/run/1", command=command)
    catch_up(book.store, open_channel(settings))
    assert slack.titles(thread=slack.messages[0]["ts"]) == [
        "b11434: approval reminder",
        "b11434: approval reminder",
        "b11434: approval withdrawn",
    ]
    assert f"`{command}`" in str(slack.messages[2]["blocks"])
    assert "`llama-release upgrade`" in str(slack.messages[3]["blocks"])


def test_a_rollback_goes_to_the_thread_of_the_release_that_it_is_about(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    back = Release(upstream=UpstreamRelease(build=11401), tree="t", build="d", argv=(), files={}, alias="default")
    book.store.save_release(back)
    book.started("b11401")
    book.started("b11434")
    book.add("rolled_back", "b11434 did not verify", release=back.id)
    catch_up(book.store, open_channel(settings))
    first, _, last = slack.messages
    assert last["thread_ts"] == first["ts"]
    assert "`llama-release hold lift`" in str(last["blocks"])


def test_a_proof_or_a_drill_that_does_not_pass_is_told_with_what_to_do(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    book.started()
    for kind in ("rollback_proof", "drill"):
        book.add(kind, verdict="passed")
        book.add(kind, "fell back", verdict="failed")
    book.add("redeployed", "on new servers")
    catch_up(book.store, open_channel(settings))
    assert slack.titles()[1:] == ["b11434: rollback proof failed", "b11434: drill failed", "b11434: redeployed"]
    assert "`llama-release redeploy --reason " in str(slack.messages[1]["blocks"])
    assert "`llama-release upgrade --to b11434`" in str(slack.messages[2]["blocks"])


def test_a_failed_restore_says_how_many_in_a_row_and_which_was_the_last_good_one(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    channel = open_channel(settings)
    book.started()
    book.add("stage.restore", verdict="passed", release="aaa")
    book.add("stage.restore", "it fell back", verdict="failed", release="bbb")
    book.add("stage.restore", "it crashed", verdict="failed", release="bbb")
    catch_up(book.store, channel)
    assert slack.titles()[1:] == ["b11434: restore failed, 1 in a row", "b11434: restore failed, 2 in a row"]
    said = str(slack.messages[-1]["blocks"])
    assert "release bbb: it crashed" in said
    assert "last good restore: aaa at 2026-11-22 12:02 UTC" in said
    assert "`llama-release upgrade --again`" in said


def test_the_same_again_is_counted_on_the_message_that_is_there(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    for _ in range(3):
        book.add("stage.build", "disk full", error="ToolingError")
        catch_up(book.store, open_channel(settings))
    assert slack.titles() == ["llama-release: stopped at build (3 times)"]


def test_what_is_longer_than_block_kit_takes_is_cut_and_markup_is_escaped(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    book.add("stage.build", "<!channel> & " + "x" * 5000, error="ReleaseFailed", target="b" + "1" * 200)
    catch_up(book.store, open_channel(settings))
    (message,) = slack.messages
    assert message["blocks"][1]["text"]["text"].startswith("&lt;!channel&gt; &amp; xxx")


@pytest.mark.parametrize("status", [500, 503])
def test_server_errors_are_tried_again(book: Book, slack: FakeSlack, settings: NotifySettings, status: int) -> None:
    slack.faults = [(status, {"Retry-After": "0"})] * (notify.TRIES - 1)
    book.started()
    catch_up(book.store, open_channel(settings))
    assert len(slack.messages) == 1


def test_an_outage_loses_nothing_and_the_next_run_tells_it(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    slack.faults = [(503, {}) for _ in range(2 * notify.TRIES)]
    book.started()
    book.add("promoted", "in production")
    with pytest.raises(Undelivered, match="2 of their messages wait: Slack refused it: internal_error"):
        catch_up(book.store, open_channel(settings))
    assert slack.calls == 2 * notify.TRIES
    assert not slack.messages
    catch_up(book.store, open_channel(settings), later(1))
    assert slack.titles() == ["b11434: upgrade started", "b11434: promoted"]


def test_a_rate_limit_is_waited_for_and_holds_up_no_other_message(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    channel = open_channel(settings)
    slack.faults = [(429, {"Retry-After": "30"})]
    book.started()
    book.add("promoted", "in production")
    for minutes in (0, 0.25):
        with pytest.raises(Undelivered, match="1 of their messages wait: Slack refused it: ratelimited"):
            catch_up(book.store, channel, later(minutes))
        assert slack.titles() == ["b11434: promoted"]
    assert slack.calls == 2
    catch_up(book.store, channel, later(1))
    assert slack.titles() == ["b11434: promoted", "b11434: upgrade started"]


def test_what_waits_is_tried_less_and_less_often_and_an_outage_is_not_asked_for_every_message(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    slack.refusals = {"chat.postMessage": "not_in_channel"}
    for n in range(10):
        book.add("promoted", f"number {n}")
    calls = []
    for minutes in range(60):
        before = slack.calls
        with pytest.raises(Undelivered, match="10 of their messages wait"):
            catch_up(book.store, open_channel(settings), later(minutes))
        calls.append(slack.calls - before)
    assert max(calls) == notify.IN_A_ROW
    assert sum(calls) < 120
    slack.refusals = {}
    catch_up(book.store, open_channel(settings), later(180))
    assert len(slack.messages) == 10


@pytest.mark.parametrize("why", ["is_archived", "restricted_action", "msg_too_long"])
def test_what_slack_refuses_for_good_is_said_once_and_blocks_nothing(
    book: Book, slack: FakeSlack, settings: NotifySettings, why: str
) -> None:
    slack.refusals = {"chat.postMessage": why}
    book.started()
    catch_up(book.store, open_channel(settings))
    slack.refusals = {}
    book.add("promoted", "in production")
    for _ in range(2):
        catch_up(book.store, open_channel(settings))
    assert slack.titles() == ["b11434: promoted"]
    (said,) = [event.summary for event in book.store.ledger() if event.kind == "not_told"]
    assert said.startswith(f"people will not be told `b11434: upgrade started`: Slack refused it: {why}")


@pytest.mark.parametrize("why", ["message_not_found", "edit_window_closed", "cant_update_message"])
def test_what_can_no_longer_be_changed_is_said_anew(
    book: Book, slack: FakeSlack, settings: NotifySettings, why: str
) -> None:
    slack.refusals = {"chat.update": why}
    for _ in range(2):
        book.add("stage.build", "disk full", error="ToolingError")
    book.add("promoted", "in production")
    catch_up(book.store, open_channel(settings))
    stopped = "llama-release: stopped at build"
    assert slack.titles() == [stopped, stopped, "llama-release: promoted"]


@pytest.mark.parametrize(
    ("channel", "token", "why"), [("#releases", "xoxb-wrong", "invalid_auth"), ("#nowhere", TOKEN, "channel_not_found")]
)
def test_a_wrong_token_or_channel_says_what_to_check_and_never_the_token(
    book: Book, settings: NotifySettings, channel: str, token: str, why: str
) -> None:
    book.started()
    with pytest.raises(Undelivered, match=why) as refused:
        catch_up(book.store, Slack(settings, channel, token))
    assert "notify.slack_channel and the token in SLACK_BOT_TOKEN" in str(refused.value)
    assert token not in str(refused.value)


def test_following_tells_what_happens_meanwhile_and_an_outage_stops_nothing(
    book: Book, slack: FakeSlack, settings: NotifySettings, capsys: pytest.CaptureFixture[str]
) -> None:
    with following(book.store, settings):
        book.started()
    assert slack.titles() == ["b11434: upgrade started"]
    dead = settings.model_copy(update={"slack_api_url": "http://127.0.0.1:9/api/"})
    with following(book.store, dead):
        book.add("promoted", "in production")
    said = "people were not told: 1 of their messages wait: Slack does not answer"
    assert book.store.ledger()[-1].summary.startswith(said)
    assert "the next run tells them" in " ".join(capsys.readouterr().out.split())
    with following(book.store, settings):
        assert until(lambda: len(slack.titles()) == 2)
    assert slack.titles() == ["b11434: upgrade started", "b11434: promoted"]


def test_a_ledger_that_takes_nothing_either_stops_nothing(
    book: Book, settings: NotifySettings, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = book.store.root / "ledger"
    ledger.write_text("no folder")
    (book.store.root / "outbox.json").write_text("{")
    with following(book.store, settings):
        pass
    assert "people were not told" in capsys.readouterr().out


def test_without_a_token_the_same_goes_to_the_log(
    book: Book,
    slack: FakeSlack,
    settings: NotifySettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("SLACK_BOT_TOKEN")
    book.started()
    with caplog.at_level(logging.INFO):
        catch_up(book.store, open_channel(settings))
    assert "b11434: upgrade started | production b11401, 33 newer" in caplog.text
    assert not slack.messages


def test_slack_that_is_switched_on_after_runs_without_it_is_told(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    book.add("stage.build", "disk full", error="ToolingError", target="b11434")
    catch_up(book.store, open_channel(NotifySettings()))
    assert not slack.messages
    book.add("stage.build", "disk full", error="ToolingError", target="b11434")
    book.add("promoted", "in production")
    catch_up(book.store, open_channel(settings))
    assert slack.titles() == ["b11434: stopped at build", "b11434: promoted"]
    assert slack.messages[1]["thread_ts"] == slack.messages[0]["ts"]


def test_an_outbox_of_runs_without_slack_from_before_november_2026_is_no_hindrance(
    book: Book, slack: FakeSlack, settings: NotifySettings
) -> None:
    told = Notice(thread="b11434", title="b11434: promoted", text="in production")
    box = book.store.load_outbox(Outbox)
    assert box
    without = {"roots": {"b11434": told.digest}, "sent": {told.digest: Sent(id=told.digest)}, "thread": "b11434"}
    book.store.save_outbox(box.model_copy(update=without))
    book.add("promoted", "in production")
    catch_up(book.store, open_channel(settings))
    assert slack.titles() == ["b11434: promoted"]


def test_a_test_message_is_sent_and_changed(slack: FakeSlack, settings: NotifySettings) -> None:
    assert "sent to #releases and changed" in str(stored.slack(settings))
    assert slack.titles() == ["a test message (2 times)"]
    slack.refusals = {"chat.update": "cant_update_message"}
    assert stored.slack(settings) == warning(
        "Slack takes messages, but no change of them", "each that happens again will be a new message"
    )
    slack.refusals = {"chat.postMessage": "is_archived"}
    with pytest.raises(ToolingError, match="Slack took no test message") as refused:
        stored.slack(settings)
    assert "is_archived" in refused.value.evidence
    with pytest.raises(BadInput, match="Slack is not set up"):
        stored.slack(NotifySettings())


def test_what_happened_before_anybody_listened_is_not_told(
    store: Store, slack: FakeSlack, settings: NotifySettings
) -> None:
    Book(store).started()
    catch_up(store, open_channel(settings))
    assert not slack.messages
