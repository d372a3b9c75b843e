"""The ledger as messages for people: in Slack, one thread an upstream release, or in the log where there is no token.

Nothing tells Slack anything by itself: whatever is worth a message is an event of the ledger. So no message is lost
by a killed process or an outage (the next run sends what is left), and no stage waits for Slack. Each message has its
own fate: what Slack refuses for good is dropped and said once, what it refuses for now waits, and holds up no other.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any, Protocol

from pydantic import Field
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.http_retry.builtin_handlers import (
    ConnectionErrorRetryHandler,
    ServerErrorRetryHandler,
)

from tasks.console import console, one_line, visible
from tasks.release import BadInput, Event, Model, ToolingError, Verdict, digest_of, now
from tasks.report import NAME_WIDTH
from tasks.settings import NotifySettings
from tasks.store import Store

log = logging.getLogger(__name__)

POLL_S = 1.0
TRIES = 3
TIMEOUT_S = 10
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 3600.0
"""Before a message is tried again; each time twice as long."""
IN_A_ROW = 3
"""Messages refused for now one after the other: then it is the channel, and the others wait for the next time."""
REMEMBERED = 200
"""Messages that are told as `again` instead of anew; and the most that wait, of which the oldest are dropped."""
TITLE_LIMIT, TEXT_LIMIT = 150, 3000
"""Characters of a header and of a section (Slack's documentation, "Block Kit reference")."""


_ESCAPED = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}


class Notice(Model):
    """One message to people."""

    thread: str = Field(description="the upstream release that it is about: its tag")
    title: str
    text: str = ""
    link: str = Field(default="", description="where to look or decide")
    command: str = Field(default="", description="what to run to act on it")

    @property
    def digest(self) -> str:
        return digest_of(self.model_dump())[:16]


class Sent(Model):
    """A notice that went out."""

    id: str = Field(description="the message's own id: Slack's ts")
    channel: str = Field(default="", description="the id of the channel, which may be set by its name")
    count: int = Field(default=1, description="how often it would have been sent")


class Waiting(Model):
    """A notice that is still to be sent."""

    notice: Notice
    due: datetime = Field(description="when it is tried, or tried again")
    tries: int = 0
    why: str = Field(default="", description="why it was not taken the last time")

    def again(self, at: datetime, refused: Undelivered) -> Waiting:
        """The same, later: when Slack says, or twice as long after this as the last time."""
        wait_s = max(refused.retry_s, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self.tries))
        due = at + timedelta(seconds=wait_s)
        return self.model_copy(update={"due": due, "tries": self.tries + 1, "why": str(refused)})


class Outbox(Model):
    """How far the ledger has been told, kept in the store."""

    after: str = Field(description="name of the last ledger file that was told, or waits to be")
    waiting: tuple[Waiting, ...] = Field(default=(), description="what is not sent yet, oldest first")
    channel: str = Field(default="", description="the Slack channel, as it is set, that `roots` and `sent` are of")
    thread: str = Field(default="", description="the upstream release that a run is about")
    roots: dict[str, str] = Field(default_factory=dict, description="upstream release -> first message of its thread")
    sent: dict[str, Sent] = Field(default_factory=dict, description="notice digest -> message")


class Channel(Protocol):
    """Where messages go."""

    def deliver(self, notice: Notice, box: Outbox) -> Outbox:
        """Send a notice; returns the outbox with what is to be remembered of it. Raises Undelivered."""


class Undelivered(Exception):
    """A notice did not reach its channel now; the message says why, and what to do."""

    def __init__(self, why: str, retry_s: float = 0.0) -> None:
        super().__init__(why)
        self.retry_s = retry_s
        """It is to be tried again after so many seconds at the earliest (Slack's Retry-After)."""


class Refused(Undelivered):
    """A notice will never reach its channel."""


class Log:
    """Messages as log lines: where there is no Slack. None is remembered: what Slack has is not touched by it."""

    def deliver(self, notice: Notice, box: Outbox) -> Outbox:
        said = " | ".join(filter(None, [notice.title, notice.text, notice.link, notice.command]))
        log.info("%s", one_line(said))
        return box


FOR_NOW = frozenset([
    "ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable", "request_timeout",
    "not_authed", "invalid_auth", "account_inactive", "token_revoked", "token_expired", "missing_scope",
    "channel_not_found", "not_in_channel",
])  # fmt: skip
"""Errors of Slack's (its documentation, "chat.postMessage") that pass, or that a person ends by another token, another
channel or an invitation. Any other is about the message or what became of the channel: it would be the same again."""


class Slack:
    """A channel of a Slack workspace, with bounded retries; a rate limit is waited for by the message, not in here."""

    def __init__(self, settings: NotifySettings, channel: str, token: str) -> None:
        self._channel, self._token_env = channel, settings.slack_token_env
        retries = TRIES - 1
        self._client = WebClient(
            token=token,
            base_url=settings.slack_api_url,
            timeout=TIMEOUT_S,
            logger=logging.Logger("slack", level=logging.CRITICAL),  # what went wrong is said once, by us
            retry_handlers=[
                ConnectionErrorRetryHandler(max_retry_count=retries),
                ServerErrorRetryHandler(max_retry_count=retries),
            ],
        )

    def deliver(self, notice: Notice, box: Outbox) -> Outbox:
        """As a new message, in the thread of its upstream release, or on the one that says the same already."""
        if box.channel != self._channel:
            box = box.model_copy(update={"channel": self._channel, "roots": {}, "sent": {}})
        sent = self._again(notice, box.sent.get(notice.digest)) or self._post(notice, box.roots.get(notice.thread))
        kept = dict([*box.sent.items()][-REMEMBERED:])
        return box.model_copy(
            update={"roots": {notice.thread: sent.id, **box.roots}, "sent": {**kept, notice.digest: sent}}
        )

    def _again(self, notice: Notice, known: Sent | None) -> Sent | None:
        """What was sent, with one more of it; None when there is nothing, or Slack takes no more changes of it."""
        if known is None:
            return None
        again = known.model_copy(update={"count": known.count + 1})
        try:
            self._call("chat.update", {"channel": again.channel, "ts": again.id, **_message(notice, again.count)})
        except Refused:
            return None  # deleted, or older than the workspace lets messages be changed
        return again

    def _post(self, notice: Notice, root: str | None) -> Sent:
        thread = {"thread_ts": root} if root else {}
        answer = self._call("chat.postMessage", {"channel": self._channel, **thread, **_message(notice)})
        return Sent(id=str(answer["ts"]), channel=str(answer["channel"]))

    def _call(self, method: str, body: dict[str, Any]) -> Any:
        try:
            return self._client.api_call(method, json=body)
        except SlackApiError as error:
            answer = error.response
            why = answer.get("error") if isinstance(answer.data, dict) else answer.status_code
            said = f"Slack refused it: {why}; check notify.slack_channel and the token in {self._token_env}"
            if why in FOR_NOW or answer.status_code >= 429:
                after = str(answer.headers.get("Retry-After", ""))
                raise Undelivered(said, float(after) if after.isdecimal() else 0.0) from error
            raise Refused(said) from error
        except (SlackClientError, OSError) as error:
            raise Undelivered(f"Slack does not answer: {type(error).__name__}: {error}") from error


def _message(notice: Notice, count: int = 1) -> dict[str, Any]:
    title = _plain(one_line(f"{notice.title} ({count} times)" if count > 1 else notice.title), TITLE_LIMIT)
    parts = [_plain(text, TEXT_LIMIT)] if (text := notice.text.strip()) else []
    if notice.link:
        parts += [{"type": "mrkdwn", "verbatim": True, "text": f"<{_ours(notice.link)}|look and decide>"}]
    if notice.command:
        parts += [{"type": "mrkdwn", "verbatim": True, "text": f"`{_ours(notice.command)}`"}]
    blocks = [{"type": "header", "text": title}, *({"type": "section", "text": part} for part in parts)]
    # the notification of a message with blocks, which Slack reads as mrkdwn unless told otherwise
    return {"text": title["text"], "mrkdwn": False, "blocks": blocks}


def _plain(text: str, limit: int) -> dict[str, Any]:
    """Text that Slack shows as it is: it knows no mention, link, emphasis or emoji in a `plain_text`.

    Block Kit wants these three escaped in every text object ("Formatting message text", "Escaping text").
    """
    shown = [character.translate(_ESCAPED) for character in visible(text)]
    ends = list(accumulate(map(len, shown)))
    fits = ends[-1] <= limit
    cut = shown if fits else [*shown[: bisect_right(ends, limit - 1)], "…"]
    return {"type": "plain_text", "emoji": False, "text": "".join(cut)}


def _ours(text: str) -> str:
    """A link or command of ours between `<` or backticks; none of them has one of these."""
    return one_line(text).translate(_ESCAPED | {ord("`"): "'", ord("|"): "%7C"})


def open_channel(settings: NotifySettings) -> Channel:
    """Slack when a channel is set and its token is there, else the log."""
    token = os.environ.get(settings.slack_token_env)
    if not settings.slack_channel or not token:
        return Log()
    return Slack(settings, settings.slack_channel, token)


def send_test(settings: NotifySettings) -> bool:
    """Send one message to Slack and change it; whether the change was taken.

    Raises BadInput when no channel or token is set, and Undelivered.
    """
    channel = open_channel(settings)
    if not isinstance(channel, Slack):
        raise BadInput(
            "Slack is not set up",
            evidence=f"notify.slack_channel is {settings.slack_channel or 'not set'}",
            todo=f"set it, and export {settings.slack_token_env}",
        )
    notice = Notice(thread="llama-release", title="a test message", text="sent and changed by `llama-release doctor`")
    sent = channel.deliver(notice, channel.deliver(notice, Outbox(after="")))
    return sent.sent[notice.digest].count > 1


def notice_of(event: Event, thread: str, before: Callable[[], Sequence[Event]]) -> Notice | None:
    """What people are told of an event; None for the many that they need not hear of.

    `thread`: the upstream release that it is about; `before`: gives the ledger before it, oldest first.
    """
    event = event.model_copy(update={"summary": one_line(event.summary)})
    if event.kind == "stage.upstream" and event.detail.get("target"):
        return Notice(thread=thread, title=f"{thread}: upgrade started", text=event.summary)
    if event.kind == "stage.restore" and event.detail.get("verdict") in (Verdict.FAILED, Verdict.ERRORED):
        return _restore_alert(event, thread, before())
    if event.kind.startswith("stage."):
        name, verdict = event.kind.removeprefix("stage."), event.detail.get("verdict")
        if "error" in event.detail:
            return Notice(thread=thread, title=f"{thread}: stopped at {name}", text=event.summary)
        if verdict and verdict != Verdict.PASSED:
            return Notice(thread=thread, title=f"{thread}: {name} {verdict}", text=event.summary)
        return None
    if event.kind in ("approval_wanted", "approval_reminder", "approval_withdrawn", "approval_expired"):
        link, open_ = str(event.detail.get("link") or ""), event.kind in ("approval_wanted", "approval_reminder")
        command = str(event.detail.get("command") or "") if open_ else "llama-release upgrade"
        title = f"{thread}: {event.kind.replace('_', ' ')}"
        return Notice(thread=thread, title=title, text=event.summary, link=link, command=command)
    if event.kind == "rolled_back":
        lift = "llama-release hold lift"
        return Notice(thread=thread, title=f"{thread}: rolled back", text=event.summary, command=lift)
    if event.kind in ("watch_alert", "watch_over"):
        return _watch_notice(event, thread)
    if event.kind in ("rollback_proof", "drill") and event.detail.get("verdict") != Verdict.PASSED:
        title = f"{thread}: {event.kind.replace('_', ' ')} {event.detail.get('verdict')}"
        again = "llama-release redeploy --reason 'did not come back from an idle window'"
        command = again if event.kind == "rollback_proof" else f"llama-release upgrade --to {thread}"
        return Notice(thread=thread, title=title, text=event.summary, command=command)
    if event.kind in ("patches_broke", "patches_mended"):
        tag, broke = str(event.detail["upstream"]), event.kind == "patches_broke"
        command = f"llama-release patches --to {tag} --culprit" if broke else ""
        title = f"{tag}: {'a patch of ours is broken' if broke else 'our patches fit again'}"
        return Notice(thread=tag, title=title, text=event.summary, command=command)
    if event.kind in (
        "approved", "rejected", "promoted", "redeployed", "move_undone", "hold_lifted", "watch_acts", "revived"
    ):  # fmt: skip
        return Notice(thread=thread, title=f"{thread}: {event.kind.replace('_', ' ')}", text=event.summary)
    return None


def _restore_alert(event: Event, thread: str, before: Sequence[Event]) -> Notice:
    restores = [e for e in before if e.kind == event.kind and e.detail.get("verdict")]
    row = 1
    last_good = None
    for earlier in reversed(restores):
        if earlier.detail["verdict"] == Verdict.PASSED:
            last_good = earlier
            break
        row += 1
    good = f"{last_good.release} at {last_good.at:%Y-%m-%d %H:%M} UTC" if last_good else "none in the ledger"
    return Notice(
        thread=thread,
        title=f"{thread}: restore {event.detail['verdict']}, {row} in a row",
        text=f"release {event.release}: {event.summary}\nlast good restore: {good}",
        command="llama-release upgrade --again",
    )


_WATCHED = {
    "down": "nobody is answered by production",
    "restores_fail": "production does not come back well from idle",
    "errors_after_idle": "production answers with errors after idle",
    "slower": "production has become slower",
}


def _watch_notice(event: Event, thread: str) -> Notice:
    what = _WATCHED[event.detail["about"]]
    if event.kind == "watch_over":
        return Notice(thread=thread, title=f"{thread}: no longer so: {what}", text=event.summary)
    text = f"release {event.release}: {event.summary}"
    if row := event.detail["in_a_row"]:
        good = event.detail["last_good"]
        last = f"{datetime.fromisoformat(good):%Y-%m-%d %H:%M} UTC" if good else "none since it was promoted"
        text += f"\n{row} in a row; the last good one: {last}"
    return Notice(thread=thread, title=f"{thread}: {what}", text=text, command=event.detail["command"])


def catch_up(store: Store, channel: Channel, at: datetime | None = None) -> None:
    """Tell what the ledger has that was not told yet, and what waited until `at` (now).

    Raises Undelivered when something is still to be told; it is left for the next time. What happened before the first
    call ever is not told.
    """
    at = at or now()
    box = store.load_outbox(Outbox) or _begin(store)
    if any(entry.due <= at for entry in box.waiting) or any(store.events(after=box.after)):
        with ExitStack() as held:
            try:
                held.enter_context(store.lock("notify", holder={"doing": "telling people what the ledger got"}))
            except ToolingError:
                return  # another run tells it, or the next one
            box = _send(store, channel, _collect(store, at), at)
    if box.waiting:
        raise Undelivered(f"{len(box.waiting)} of their messages wait: {box.waiting[-1].why}")


def _collect(store: Store, at: datetime) -> Outbox:
    """The outbox with the notices of what is new in the ledger, saved."""
    box = before = store.load_outbox(Outbox) or _begin(store)
    for name, event in store.events(after=box.after):
        thread = _thread(store, event, box.thread)
        told = box.after
        notice = notice_of(event, thread, lambda until=told: [e for _, e in store.events(until=until)])  # type: ignore[misc]
        new = (Waiting(notice=notice, due=at),) if notice else ()
        waiting = (*box.waiting, *new)[-REMEMBERED:]
        box = box.model_copy(update={"after": name, "thread": thread, "waiting": waiting})
    if box != before:
        store.save_outbox(box)
    return box


def _send(store: Store, channel: Channel, box: Outbox, at: datetime) -> Outbox:
    """The outbox without what was sent or refused for good, saved after each."""
    kept: list[Waiting] = []
    refused = 0
    for n, entry in enumerate(all_of_them := box.waiting, 1):
        if entry.due > at or refused == IN_A_ROW:
            kept.append(entry)
            continue
        try:
            box, refused = channel.deliver(entry.notice, box), 0
        except Refused as error:
            store.log(Event(kind="not_told", summary=f"people will not be told `{entry.notice.title}`: {error}"))
        except Undelivered as error:
            kept.append(entry.again(at, error))
            refused += 1
        box = box.model_copy(update={"waiting": (*kept, *all_of_them[n:])})
        store.save_outbox(box)
    return box


def _begin(store: Store) -> Outbox:
    names = [name for name, _ in store.events()]
    box = Outbox(after=names[-1] if names else "")
    store.save_outbox(box)
    return box


def _thread(store: Store, event: Event, current: str) -> str:
    if target := event.detail.get("target"):
        return str(target)
    release = store.release(event.release) if event.release else None
    return release.upstream.tag if release else current or "llama-release"


@contextmanager
def following(store: Store, settings: NotifySettings) -> Iterator[None]:
    """Tell people what the ledger gets while the block runs.

    Trouble with the channel stops nothing: it is said at the end, in the terminal and in the ledger.
    """
    channel = open_channel(settings)
    _trouble(store, channel)
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(POLL_S):
            _trouble(store, channel)  # said at the end, if it is still there

    thread = threading.Thread(target=follow, name="notify", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if trouble := _trouble(store, channel):
            said = f"people were not told: {trouble}"
            console.print(f"  {'notify':<{NAME_WIDTH}} {one_line(said)}; the next run tells them")
            with suppress(ToolingError):  # a ledger that takes nothing is the trouble of whoever needs it
                store.log(Event(kind="not_told", summary=said))


def _trouble(store: Store, channel: Channel) -> str:
    """Why people could not be told; '' when they were."""
    try:
        catch_up(store, channel)
    except Undelivered as error:
        return str(error)
    except Exception as error:  # telling people is never worth a release
        log.exception("people were not told")
        return f"{type(error).__name__}: {error}"
    return ""
