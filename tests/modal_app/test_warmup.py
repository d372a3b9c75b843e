"""The warm-up against real servers: what it leaves in one, what another can't have, and what goes wrong on the way."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import gguf
import pytest

from modal_app import warmup
from modal_app.warmup import (
    Answer,
    Golden,
    NoAnswer,
    Seen,
    Token,
    answer_again,
    ask_again,
    differences,
    record,
    warm_up,
)
from tasks.contracts.scripted import Script
from tasks.contracts.scripted import build as build_model
from tasks.platforms.local import LocalPlatform
from tasks.release import Build, Endpoint, Release
from tasks.settings import Settings
from tests.contracts.breaking_proxy import Ask, Breakage, Reply, broken
from tests.fakes.listening import Answering, listening
from tests.modal_app import projector

real = pytest.mark.real
SMOLLM2_WIDTH = 576
"""Embedding length."""
Servers = Callable[[str, int], Release]


@pytest.fixture(scope="module")
def platform(base: Settings) -> LocalPlatform:
    return LocalPlatform(base)


@pytest.fixture(scope="module")
def servers(
    platform: LocalPlatform,
    build: Build,
    unpatched_at: Callable[[str], Build],
    tmp_path_factory: pytest.TempPathFactory,
) -> Servers:
    """Releases of an upstream tag with so many slots, whose model is a script (with a sliding window)."""
    folder = tmp_path_factory.mktemp("warmup")
    # the letters that a nonce ends with have a word to say, too
    script = Script(("model\nThe answer is forty-two.<turn|>", *(f"{letter}\n" for letter in "0123456789abcdef")))
    model = platform.store.put_file(build_model(script, folder / "m.gguf"))

    def release(tag: str, slots: int) -> Release:
        made = build if tag == "b11434" else unpatched_at(tag)
        load = ("--load-mode", "none") if made.source.upstream.build >= 10884 else ("--no-mmap",)  # upstream b10884
        return Release(
            upstream=made.source.upstream, tree=made.source.tree, build=made.digest, alias="script",
            argv=("--model", "{model}", "--ctx-size", str(4096 * slots), "--parallel", str(slots), *load, "--jinja",
                  "--threads", "1"),
            files={"model": model},
        )  # fmt: skip

    return release


def asked(endpoint: Endpoint, golden: Golden) -> Seen:
    return ask_again(endpoint.base_url, endpoint.api_key, golden, patience_s=30)


@real
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("tag", ["b8672", "b11434"])
def test_only_the_server_that_was_warmed_up_has_the_nonce(
    platform: LocalPlatform, servers: Servers, tag: str, slots: int
) -> None:
    release = servers(tag, slots)
    with platform.trial(release) as endpoint:
        golden = warm_up(endpoint.base_url, endpoint.api_key, vision=False)
        again = asked(endpoint, golden)
    assert (again.nonce.found, again.warm.found, again.control.found) == (True, True, False)
    assert again.answers == golden.first == golden.repeats[-1]
    with platform.trial(release) as endpoint:
        cold = asked(endpoint, golden)
    assert (cold.nonce.found, cold.warm.found, cold.control.found) == (False, True, False)
    assert cold.nonce.cached_tokens == cold.control.cached_tokens == 0
    assert cold.answers == golden.first


@real
@pytest.mark.parametrize("tag", ["b8672", "b11434"])
def test_every_path_of_a_server_that_sees_is_used(
    platform: LocalPlatform, servers: Servers, tag: str, tmp_path: Path
) -> None:
    used: list[tuple[str, bool]] = []

    class Listening(Breakage):
        def ask(self, ask: Ask) -> Ask:
            used.extend((word, word in ask.body.decode()) for word in ("stream", "tools", "thinking", "image_url"))
            return ask

    release = servers(tag, 1)
    width = gguf.GGUFReader(platform.store.file(release.files["model"])).get_field("gemma4.embedding_length")
    assert width is not None
    release = seeing(platform, release, projector.build(tmp_path / "p.gguf", width.contents()))
    with platform.trial(release) as server, broken(server, Listening()) as endpoint:
        golden = warm_up(endpoint.base_url, endpoint.api_key, vision=True)
    assert {word for word, there in used if there} == {"stream", "tools", "thinking", "image_url"}
    assert [answer.image for answer in golden.first] == [False, False, False, False, True]


def seeing(platform: LocalPlatform, release: Release, mmproj: Path) -> Release:
    files = release.files | {"mmproj": platform.store.put_file(mmproj)}
    return release.model_copy(update={"argv": (*release.argv, "--mmproj", "{mmproj}"), "files": files})


@real
def test_one_wrong_weight_of_the_projector_shows_in_what_a_real_model_says_of_an_image(
    platform: LocalPlatform, servers: Servers, smollm2: Path, tmp_path: Path
) -> None:
    blind = servers("b11434", 2).model_copy(update={"files": {"model": platform.store.put_file(smollm2)}})
    release = seeing(platform, blind, projector.build(tmp_path / "p.gguf", SMOLLM2_WIDTH))
    with platform.trial(release) as endpoint:
        golden = record(endpoint.base_url, endpoint.api_key, vision=True)
        again = asked(endpoint, golden)
    assert (again.nonce.found, again.warm.found, again.control.found) == (True, True, False)
    assert again.answers == golden.first == golden.repeats[-1]
    assert all(p < 0 for answer in golden.first for token in answer.tokens for _, p in token.top)
    wrong = seeing(platform, blind, projector.build(tmp_path / "wrong.gguf", SMOLLM2_WIDTH, one_weight_off=True))
    with platform.trial(wrong) as endpoint:
        seen = asked(endpoint, golden)
    assert [a == b for a, b in zip(seen.answers, golden.first, strict=True)] == [True, True, True, True, False]


@pytest.fixture(scope="module")
def running(platform: LocalPlatform, servers: Servers) -> Iterator[Endpoint]:
    with platform.trial(servers("b11434", 1)) as endpoint:
        yield endpoint


@real
def test_golden_answers_of_an_earlier_version_are_asked_again_in_their_own_length(running: Endpoint) -> None:
    """Before November 2026 they had 12 tokens, were asked twice, and stood under other names."""
    long = Golden((1,), (2,), (tuple(Answer(text, False, (Token(0, ()),) * 12) for text in warmup.TEXTS),))
    said = [asdict(each) for each in answer_again(running.base_url, running.api_key, long)]
    nonce = asdict(record(running.base_url, running.api_key, vision=False))
    golden = Golden.from_json(
        json.dumps({"nonce": nonce["nonce"], "tail": nonce["tail"], "first": said, "second": said})
    )
    assert [len(each.tokens) for each in golden.first] == [12] * len(warmup.TEXTS)
    assert list(differences(golden, asked(running, golden).answers)) == []


@real
def test_a_server_that_keeps_nothing_gives_no_golden_record(platform: LocalPlatform, servers: Servers) -> None:
    """Without checkpoints b11434 computes a prompt anew when the model has a sliding window."""
    release = servers("b11434", 1)
    forgetful = release.model_copy(update={"argv": (*release.argv, "--ctx-checkpoints", "0")})
    with platform.trial(forgetful) as endpoint, pytest.raises(NoAnswer, match="did not keep enough"):
        record(endpoint.base_url, endpoint.api_key, vision=False)


@real
@pytest.mark.parametrize("path", ["/props", "/v1/chat/completions", "/completion"])
def test_a_path_that_does_not_answer_is_named(running: Endpoint, path: str) -> None:
    class Refusing(Breakage):
        def reply(self, ask: Ask, reply: Reply) -> Reply:
            return Reply(500, b"out of kernels") if ask.path == path else reply

    with broken(running, Refusing()) as endpoint, pytest.raises(NoAnswer, match=f"{path}: 500 out of kernels"):
        warm_up(endpoint.base_url, endpoint.api_key, vision=False)


@real
def test_an_answer_in_a_form_of_a_later_build_is_no_answer(running: Endpoint) -> None:
    class Later(Breakage):
        def reply(self, _ask: Ask, reply: Reply) -> Reply:
            return replace(reply, body=reply.body.replace(b'"completion_probabilities"', b'"probabilities"'))

    with broken(running, Later()) as endpoint, pytest.raises(NoAnswer, match="another form.*completion_prob"):
        record(endpoint.base_url, endpoint.api_key, vision=False)


@real
def test_a_server_that_still_comes_up_is_asked_again(running: Endpoint) -> None:
    class Starting(Breakage):
        def __init__(self, refusals: int = 2) -> None:
            self.refusals = refusals

        def ask(self, ask: Ask) -> Ask:
            self.refusals -= 1
            return replace(ask, path="/not-yet") if self.refusals >= 0 else ask

        def reply(self, ask: Ask, reply: Reply) -> Reply:
            return Reply(503, b"loading") if ask.path == "/not-yet" else reply

    golden = record(running.base_url, running.api_key, vision=False)
    with broken(running, Starting()) as endpoint:
        seen = asked(endpoint, golden)
    assert seen.nonce.found
    assert seen.nonce.first_token_s > 2 * warmup.RETRY_S
    with broken(running, Starting(refusals=1000)) as endpoint, pytest.raises(NoAnswer, match="503 loading"):
        ask_again(endpoint.base_url, endpoint.api_key, golden, patience_s=2)


@pytest.mark.wire
@pytest.mark.parametrize(
    ("before", "waking"),
    [([], 1), ([b"502 Bad Gateway", b"504 Gateway Timeout", b"503 Service Unavailable", b""], 5)],
)
def test_a_server_that_still_comes_up_is_asked_again_but_a_prompt_that_broke_off_is_never_sent_again(
    before: list[bytes], waking: int
) -> None:
    """It may have planted the nonce: a second one would find it on a server that booted cold."""
    sent: list[bytes] = []
    golden = Golden(nonce=(1,), tail=(2,), repeats=((),))

    def hang_up(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the test is over
            while True:
                client, _ = listener.accept()
                sent.append(client.recv(1 << 16))
                if b"/health" in sent[-1]:
                    status = before[len(sent) - 1] if len(sent) <= len(before) else b"200 OK"
                    body = b"HTTP/1.1 %s\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}" % status
                    client.sendall(body if status else b"")  # nothing: the connection breaks off
                client.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up, args=(listener,), daemon=True)
        thread.start()
        with pytest.raises(NoAnswer, match="RemoteProtocolError|ReadError"):
            ask_again(f"http://127.0.0.1:{listener.getsockname()[1]}", None, golden, patience_s=5)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert [request.split()[1] for request in sent] == [b"/health"] * waking + [b"/completion"]


@pytest.mark.wire
def test_the_first_answer_after_idle_may_take_as_long_as_is_left_of_the_patience() -> None:
    """What was waited for the server to come up is part of it."""
    prompts: list[str] = []

    class Loading(Answering):
        def do_POST(self) -> None:
            prompts.append(self.path)
            self.say(b"loading", 503)

    golden = Golden(nonce=(1,), tail=(2,), repeats=((),))
    with listening(Loading) as address, pytest.raises(NoAnswer, match="503 loading"):
        ask_again(address, None, golden, patience_s=30, waited_s=31)
    assert prompts == ["/completion"]


@pytest.mark.wire
@pytest.mark.parametrize(("status", "told"), [(500, 500), (401, 401), (502, None), (503, None), (504, None)])
def test_only_what_a_server_sent_is_told_as_its_status(status: int, told: int | None) -> None:
    class Failing(Answering):
        def do_POST(self) -> None:
            self.say(b"no", status)

    golden = Golden(nonce=(1,), tail=(2,), repeats=((),))
    with listening(Failing) as address, pytest.raises(NoAnswer) as caught:
        ask_again(address, None, golden, patience_s=30, waited_s=30)
    assert caught.value.status == told


def test_nobody_there_is_no_answer() -> None:
    with pytest.raises(NoAnswer, match="ConnectError") as caught:
        record("http://127.0.0.1:1", None, vision=False)
    assert caught.value.status is None


def test_a_golden_record_survives_json_and_nothing_else_is_one() -> None:
    answer = Answer("The sea", False, (Token(1, ((1, -0.1), (2, -2.5))),))
    golden = Golden(nonce=(5, 6), tail=(7,), repeats=((answer,), (answer,), (answer,)))
    assert Golden.from_json(golden.to_json()) == golden
    for wrong in (
        "",
        "[]",
        "{}",
        '{"nonce": 1, "tail": [], "repeats": [[]]}',
        '{"nonce": [], "tail": [], "repeats": []}',
    ):
        with pytest.raises(ValueError, match="no golden answers|Expecting value"):
            Golden.from_json(wrong)
