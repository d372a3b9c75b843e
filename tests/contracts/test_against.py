"""The promises asked of anybody's server: what is asked, how it is shown, and that no key is told."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from flows.contracts import as_junit, ask_and_show, base_url
from tasks.contracts.promises import CONTRACTS, verification
from tasks.release import BadInput, Release, UpstreamRelease, Verdict
from tests.contracts.conftest import Serving

RELEASE = Release(upstream=UpstreamRelease(build=1), tree="t", build="b", argv=(), files={}, alias="m")
NAMES = ("contracts.chat.usage", "contracts.health.ok", "contracts.twins.chat")


def test_a_junit_report_has_a_case_a_promise_and_says_what_is_not_kept() -> None:
    verdicts = (Verdict.PASSED, Verdict.FAILED, Verdict.ERRORED)
    found = [
        verification(CONTRACTS[name], RELEASE, verdict, "so <it> \x1b is", evidence={"ask_it": "curl"}, basis="")
        for name, verdict in zip(NAMES, verdicts, strict=True)
    ]
    suite = ElementTree.fromstring(as_junit(found))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert [case.get("name") for case in suite] == ["usage", "ok", "chat"]
    assert [[child.tag for child in case] for case in suite] == [[], ["failure"], ["error"]]
    assert suite[1][0].get("message") == "so <it> \ufffd is"


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://host", "http://", "http://ho st:x"])
def test_what_is_no_url_of_a_server_is_bad_input(url: str) -> None:
    with pytest.raises(BadInput):
        base_url(url)


def test_v1_is_not_part_of_the_base() -> None:
    assert base_url("http://host:1/v1/") == base_url("http://host:1") == "http://host:1"


@pytest.mark.real
def test_an_intact_server_of_any_model_keeps_all_that_is_asked_of_anybody(
    serving: Serving, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    endpoint, _ = serving("counting")
    assert endpoint.api_key
    assert ask_and_show(endpoint.base_url, endpoint.api_key, as_json=False, junit=tmp_path / "junit.xml") == 0
    said = capsys.readouterr().out
    asked = sum(contract.anywhere for contract in CONTRACTS.values())
    assert f"{asked} of {asked} promises kept" in said
    assert endpoint.api_key not in said + (tmp_path / "junit.xml").read_text()
