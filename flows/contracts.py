"""The promises that any server can be asked to keep: a user's own, or one of another kind that speaks the same APIs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from modal_app.settings import ModalSettings
from tasks import contracts
from tasks.console import console, one_line, print_json, styled
from tasks.contracts.promises import CONTRACTS, Recorder, verify
from tasks.endpoint import Client, base_url
from tasks.release import BadInput, Endpoint, Release, ToolingError, UpstreamRelease, Verdict, Verification

_TIMEOUT_S = 120.0
_MARKS = {
    Verdict.PASSED: ("kept", "green"),
    Verdict.FAILED: ("not kept", "red"),
    Verdict.ERRORED: ("no answer", "yellow"),
}


def ask_all(endpoint: Endpoint) -> Iterator[Verification]:
    """Ask a running server for each promise that holds whatever model it serves; what is asked changes nothing there.

    Raises ToolingError when it does not answer, BadInput when it wants another key.
    """
    runs = _running(endpoint)
    with Recorder(endpoint, timeout_s=_TIMEOUT_S) as client:
        for contract in CONTRACTS.values():
            if contract.anywhere and (endpoint.api_key or not contract.name.startswith("contracts.auth.")):
                yield verify(contract, client, runs, subject=runs, basis=contracts.basis())


def _running(endpoint: Endpoint) -> Release:
    """What is known of a release that somebody else runs: the name of its model."""
    with Client(endpoint, timeout_s=_TIMEOUT_S) as client:
        answer = client.get("/v1/models")
    if answer.status in (401, 403):
        raise BadInput(
            f"{endpoint.base_url} wants another key", evidence=f"/v1/models answered {answer.status}", todo="give --key"
        )
    try:
        alias = str(answer.body["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ToolingError(
            f"{endpoint.base_url} lists no model",
            evidence=f"/v1/models answered {answer.status}: {str(answer.body)[:200]}",
            todo="give the base URL of a server that has /v1/models",
        ) from None
    unknown = UpstreamRelease(build=1)  # what it was built of it does not say; no promise asks
    return Release(upstream=unknown, tree="", build="", argv=(), files={}, alias=alias)


def _tokens_for(address: str) -> dict[str, str]:
    """What Modal's proxy asks for before one of our own stages there. Only where a token is set is Modal asked."""
    settings = ModalSettings.load()
    if not settings.proxy_tokens:
        return {}
    from tasks.platforms.modal.apps import tokens_for

    return tokens_for(settings, address)


def ask_and_show(url: str, key: str, as_json: bool, junit: Path | None) -> int:
    """Print each promise as it is answered; the exit code: 1 when one is not kept, 3 when one got no answer."""
    found, began = [], time.monotonic()
    headers = _tokens_for(base_url(url))
    for done in ask_all(Endpoint(base_url=base_url(url), api_key=key, headers=headers)):
        found.append(done)
        if not as_json:
            _show(done)
    if junit:
        junit.write_bytes(as_junit(found))
    if as_json:
        print_json([v.model_dump(mode="json") for v in found])
    kept = sum(v.verdict is Verdict.PASSED for v in found)
    console.print(f"\n{kept} of {len(found)} promises kept, in {time.monotonic() - began:.0f} s")
    verdicts = {v.verdict for v in found}
    return 1 if Verdict.FAILED in verdicts else 3 if Verdict.ERRORED in verdicts else 0


def _show(done: Verification) -> None:
    word, colour = _MARKS[done.verdict]
    name = done.name.removeprefix("contracts.")
    said = one_line(f"{name:<28} {done.seconds:6.2f} s  {done.summary}")
    console.print(styled(f"{word:<9}", colour), said, soft_wrap=True)


def as_junit(found: Sequence[Verification]) -> bytes:
    """The verifications as a JUnit report: a suite, a case a promise, in the class of its subject."""
    failed = [v for v in found if v.verdict is Verdict.FAILED]
    errored = [v for v in found if v.verdict is Verdict.ERRORED]
    suite = ElementTree.Element(
        "testsuite", name="llama-release contracts", tests=str(len(found)), failures=str(len(failed)),
        errors=str(len(errored)), time=f"{sum(v.seconds for v in found):.3f}",
    )  # fmt: skip
    for each in found:
        subject, _, name = each.name.rpartition(".")
        case = ElementTree.SubElement(suite, "testcase", classname=subject, name=name, time=f"{each.seconds:.3f}")
        if each.verdict is not Verdict.PASSED:
            kind = "error" if each.verdict is Verdict.ERRORED else "failure"
            said = ElementTree.SubElement(case, kind, message=_printable(each.summary))
            said.text = _printable(f"{each.promise}\n{each.evidence.get('ask_it', '')}")
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))


def _printable(text: str) -> str:
    """XML 1.0 has no control characters, not even escaped."""
    return "".join(
        c if c in "\t\n" or (c >= " " and not "\ud800" <= c <= "\udfff" and c < "\ufffe") else "\ufffd" for c in text
    )
