"""What the contracts send and read, found in their own code."""

from __future__ import annotations

from tasks import contracts  # noqa: F401  (registers the promises)
from tasks.contracts.promises import CONTRACTS
from tasks.preflight.compare import Difference, Kind, What
from tasks.preflight.uses import Uses, Words, words_of

EVERYBODY = Uses(contracts={name: words_of(contract.check) for name, contract in CONTRACTS.items()})


def words(name: str) -> Words:
    return words_of(CONTRACTS[f"contracts.{name}"].check)


def test_routes_and_fields_are_found_through_helpers_and_constants() -> None:
    usage = words("responses.usage")
    assert usage.routes == {"/v1/responses"}
    assert {"input", "max_output_tokens", "temperature", "chat_template_kwargs"} <= usage.sent
    assert words("auth.models").routes == {"/models", "/v1/models"}


def test_the_clients_own_methods_are_followed() -> None:
    live = words("chat.stream_live")
    assert live.routes == {"/v1/chat/completions"}
    assert {"messages", "stream", "max_tokens"} <= live.sent
    assert live.reads("delta")
    assert "timeout" not in live.sent  # of the transport, not of the request


def test_a_key_that_is_put_together_is_read() -> None:
    usage = words("chat.usage")
    assert usage.reads("prompt_tokens")
    assert not usage.reads("prompt_per_second")


def test_a_promise_does_not_use_what_only_its_neighbour_uses() -> None:
    assert "stop" in words("chat.stop_sequence").sent
    assert "stop" not in words("chat.max_tokens").sent


def test_odd_requests_are_known() -> None:
    assert words("auth.no_key").cases == {"no key"}
    assert words("errors.malformed_json").cases == {"malformed JSON"}
    assert words("models.names_alias").cases == set()


def test_every_promise_asks_some_route() -> None:
    silent = [name for name, contract in CONTRACTS.items() if not words_of(contract.check).routes]
    assert silent == []


def test_a_key_is_read_by_whoever_reads_what_it_stands_in() -> None:
    def users(name: str, route: str) -> tuple[str, ...]:
        gone = Difference(kind=Kind.KEY, what=What.REMOVED, names=(name,), gone=True, where=(route,))
        return EVERYBODY.mark(gone).used_by

    assert users("generation_settings.speculative.type", "GET /props") == ()
    assert "contracts.settings.ctx_per_slot" in users("default_generation_settings.n_ctx", "GET /props")
    assert "contracts.chat.answers" in users("choices[].message.content", "POST /v1/chat/completions")


def test_a_route_that_has_to_be_closed_need_not_be_there() -> None:
    gone = Difference(kind=Kind.ROUTE, what=What.REMOVED, names=("GET /api/tags",), gone=True)
    assert EVERYBODY.mark(gone).used_by == ()
