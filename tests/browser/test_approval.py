"""A person in front of the real Prefect page of real paused upgrades: reads the evidence, rejects one, approves one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.conftest import NEWER, OLDER
from tests.flows.conftest import PATIENCE_S, Machine
from tests.flows.test_upgrade import answered_by
from tests.platforms.stand import until

pytestmark = pytest.mark.browser

PATIENCE_MS = 180_000.0


def waiting_upgrade(machine: Machine) -> tuple[subprocess.Popen[str], str]:
    """An upgrade that has come to its question, and the address of its page as a person is told it."""
    asked = len(machine.events("approval_wanted"))
    upgrade = machine.start("upgrade", "--to", NEWER)

    def it_asks() -> bool:
        assert upgrade.poll() is None, f"it ended first:\n{upgrade.communicate()[0]}"
        return len(machine.events("approval_wanted")) > asked

    assert until(it_asks, PATIENCE_S)
    return upgrade, str(machine.events("approval_wanted")[-1].detail["link"])


def log_in(page: Page, machine: Machine) -> None:
    """With a wrong password first: the page shows nothing until it has the right one."""
    kept = machine.store.root / "prefect" / "password"
    for password in ("admin:admin", kept.read_text().strip()):
        asked = page.locator("input[type=password]")
        expect(asked).to_be_visible(timeout=PATIENCE_MS)
        expect(page.get_by_text("Paused")).to_have_count(0)
        asked.fill(password)
        page.get_by_role("button", name="Login").click()


def form(browser: Browser, machine: Machine, link: str) -> tuple[Page, Locator]:
    """The page of a run, and the form that it shows on Resume."""
    page = browser.new_page(viewport={"width": 1400, "height": 1800}, locale="en-GB")
    page.set_default_timeout(PATIENCE_MS)
    page.goto(link)
    log_in(page, machine)
    expect(page.get_by_text("Paused").first).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Open menu").first.click()
    page.get_by_role("menuitem", name="Resume").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Resume")).to_be_visible(timeout=PATIENCE_MS)
    return page, dialog


def fill(page: Page, dialog: Locator, decision: str, approver: str, note: str) -> None:
    dialog.get_by_label("Select Decision").click()
    page.get_by_role("option", name=decision).click()
    dialog.get_by_label("Approver").fill(approver)
    dialog.get_by_label("Note").fill(note)


def resume(page: Page, dialog: Locator) -> None:
    """Press the form's button; again, as a person does, when Prefect's SQLite database was locked just then."""
    status = 503
    while status == 503:
        with page.expect_response(lambda response: response.url.endswith("/resume")) as answer:
            dialog.get_by_role("button", name="Resume").click()
        status = answer.value.status


def keep(page: Page, name: str) -> None:
    """A screenshot for whoever wants one."""
    if folder := os.environ.get("LLAMA_RELEASE_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / name)


def end_of(upgrade: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = upgrade.communicate(timeout=PATIENCE_S)
    return upgrade.returncode, said


def test_the_first_release_is_in_production(machine: Machine) -> None:
    machine.run("upgrade", "--to", OLDER, "--approver", "alice")
    assert machine.production() == OLDER == answered_by(machine)


def read(dialog: Locator, dossier: str) -> None:
    """Look at the evidence above the form, as a person does."""
    expect(dialog).to_contain_text(f"Dossier {dossier}", timeout=PATIENCE_MS)
    for title in ("What changed upstream", "Patches", "Preflight", "Contracts", "Restores", "Evals"):
        expect(dialog.get_by_role("heading", name=title)).to_be_visible()
    expect(dialog).to_contain_text(re.compile("0001-gemma4-thinking-tags.patch.*upstreamed"))
    plot = dialog.get_by_role("img", name="latency across releases")
    plot.scroll_into_view_if_needed()
    assert plot.evaluate("image => image.complete && image.naturalWidth") == 760
    dialog.get_by_text(re.compile(r"^\d+ promises$")).click()
    expect(dialog.get_by_role("cell", name="auth.wrong_key")).to_be_visible()


@pytest.mark.long
def test_a_person_rejects_in_the_page_and_production_stays(machine: Machine, browser: Browser) -> None:
    upgrade, link = waiting_upgrade(machine)
    page, dialog = form(browser, machine, link)
    request = machine.store.requests()[-1]
    read(dialog, request.dossier)
    fill(page, dialog, "reject", "bob", "not on a Friday")
    resume(page, dialog)
    code, said = end_of(upgrade)
    assert code == 4, said
    assert f"Prefect page {link}\n" in said
    assert machine.events("rejected")[-1].summary == f"bob: reject dossier {request.dossier} not on a Friday"
    assert machine.production() == OLDER == answered_by(machine)


def test_a_person_reads_the_evidence_in_the_page_and_approves(machine: Machine, browser: Browser) -> None:
    upgrade, link = waiting_upgrade(machine)
    page, dialog = form(browser, machine, link)
    read(dialog, machine.store.requests()[-1].dossier)
    fill(page, dialog, "approve", "ada", "restores look good")
    keep(page, "prefect-page.png")
    resume(page, dialog)
    code, said = end_of(upgrade)
    assert code == 0, said
    assert f"Prefect page {link}\n" in said
    assert machine.production() == NEWER == answered_by(machine)
    assert "by ada" in machine.events("promoted")[-1].summary
