"""Second choices of scripted models, calls in Gemma 4's format, and the names of probes. No server."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from tasks.contracts.probes import probes_of, run_probe, shows_fault
from tasks.contracts.promises import CONTRACTS
from tasks.contracts.scripted import FIRST, SECOND, TURN_END, Script, build, call, calls_a_tool
from tasks.release import BadInput, Problem, Release, ReleaseFailed, ToolingError, UpstreamRelease
from tasks.store import Store
from tests.conftest import REPOSITORY
from tests.contracts.standins import NothingComesUp, contents

RELEASE = Release(upstream=UpstreamRelease(build=1), tree="t", build="b", argv=("--alias", "m"), files={}, alias="m")


def test_a_call_is_written_as_gemma_4_writes_it() -> None:
    assert call("f", {"days": 3, "metric": True}) == "<|tool_call>call:f{days:3,metric:true}<tool_call|>"


def test_calls_a_tool_calls_the_first_one_of_its_own_accord() -> None:
    said = calls_a_tool().says(40)
    assert FIRST in said and SECOND not in said
    assert calls_a_tool().says(40, after="<tool_response|>") == "The answer is forty-two."


def test_calls_a_tool_has_the_second_one_where_the_first_is_forbidden() -> None:
    script = calls_a_tool()
    assert SECOND in script.seconds["<|tool_call>"]
    assert script.seconds["<tool_response|>"] == "<|tool_call>"
    assert script.successors.get(script.seconds["<|tool_call>"], TURN_END) == TURN_END
    assert script.seconds[script.seconds["<|tool_call>"]] == "<tool_call|>"


def test_a_second_choice_that_is_the_first_is_none() -> None:
    assert Script(("model\nyes <turn|>",), instead=("model\nyes no ",)).seconds == {"yes ": "no "}


@pytest.mark.parametrize(
    ("instead", "words"),
    [(("yes no ", "yes maybe "), "two second choices"), (("yes <|nonsense|>",), "cannot be tokenized")],
)
def test_wrong_second_choices_are_refused(instead: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        build(Script(("model\nyes <turn|>",), instead=instead), tmp_path / "m.gguf")


def test_a_model_prefers_the_successor_then_the_second_choice(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(build(calls_a_tool(), tmp_path / "m.gguf"))
    tokens = contents(reader, "tokenizer.ggml.tokens")
    assert isinstance(tokens, list)
    matrix = next(tensor.data for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    column = matrix[:, tokens.index("<|tool_call>")]
    first, second, *others = np.argsort(-column, kind="stable")
    assert FIRST in tokens[first] and SECOND in tokens[second]
    assert column[first] > column[second] > max(column[others]) == 0


def test_probes_are_named_by_a_trailer() -> None:
    assert probes_of("tools.named  tools.named_unknown") == ("tools.named", "tools.named_unknown")


@pytest.mark.parametrize(("trailer", "words"), [("", "no probe"), ("tools.nonsense", "tools.named"), ("x", "auth.")])
def test_a_trailer_that_names_no_promise_is_refused_with_those_there_are(trailer: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        probes_of(trailer)
    assert words in str(caught.value)


def test_every_patch_of_the_series_names_probes_there_are() -> None:
    for path in sorted((REPOSITORY / "patches").glob("*.patch")):
        trailers = [line for line in path.read_text().splitlines() if line.startswith("Proved-by: ")]
        assert len(trailers) == 1, path.name
        assert set(probes_of(trailers[0].removeprefix("Proved-by: "))) <= {n.split(".", 1)[1] for n in CONTRACTS}


@pytest.mark.parametrize(
    ("error", "verdict"), [(ReleaseFailed("it crashed"), "failed"), (ToolingError("no port"), "errored")]
)
def test_a_server_that_does_not_come_up_shows_no_fault(error: Problem, verdict: str, store: Store) -> None:
    found = run_probe(NothingComesUp(store, error), RELEASE, "tools.named")
    assert (found.name, found.verdict) == ("contracts.tools.named", verdict)
    assert not shows_fault(found)
    assert [path.name for path in store.root.glob("files/*/*.gguf")] == ["calling.gguf"]  # no other server is needed
