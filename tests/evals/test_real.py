import asyncio
import os
from pathlib import Path

import pytest

from tasks.evals import Answers, Outcome, answers, gate, item_set, table
from tasks.platforms.local import LocalPlatform
from tasks.release import Release, Verdict
from tasks.settings import Settings
from tests.evals.proxied import Proxied

pytestmark = pytest.mark.real


def silent(done: int, total: int, text: str) -> None:
    pass


def test_the_set_is_neither_too_easy_nor_too_hard_for_smollm2(baseline: Answers, eval_settings: Settings) -> None:
    found = gate(baseline, None, eval_settings)
    print(table(found))
    shares = {row["family"]: row["candidate"] / row["n"] for row in found.evidence["families"]}
    assert 0.3 <= shares["all"] <= 0.7
    assert all(0 < share < 1 for share in shares.values())
    assert baseline.complete and baseline.tokens > 72


def test_stored_answers_are_not_asked_again(
    baseline: Answers, proxied: Proxied, eval_release: Release, eval_settings: Settings
) -> None:
    assert answers(proxied, eval_release, eval_settings, silent) == baseline
    assert (proxied.trials, proxied.asked) == (0, 0)


def another(release: Release, *argv: str) -> Release:
    """The same server under another release id."""
    return release.model_copy(update={"argv": (*release.argv, *argv)})


def test_an_endpoint_that_dies_is_errored_not_wrong_and_the_rerun_goes_on_where_it_stopped(
    baseline: Answers, proxied: Proxied, eval_release: Release, eval_settings: Settings
) -> None:
    release = another(eval_release, "--metrics")
    steps: list[tuple[int, int]] = []
    proxied.dies_after = 20
    half = answers(proxied, release, eval_settings, lambda done, total, text: steps.append((done, total)))
    assert steps == [(n, 72) for n in range(1, 21)]
    assert len(half.having(Outcome.ERRORED)) == 52
    wrong = {a.item for a in baseline.having(Outcome.WRONG)} | {a.item for a in baseline.having(Outcome.TRUNCATED)}
    assert len({a.item for a in half.having(Outcome.WRONG)} - wrong) <= 2
    verdict = gate(half, baseline, eval_settings)
    assert verdict.verdict is Verdict.ERRORED
    assert "52 of 72 items have no answer" in verdict.summary
    assert proxied.store.files.read(proxied.store.answers_path(release.id, half.set_digest)) is None

    proxied.dies_after = None
    whole = answers(proxied, release, eval_settings, silent)
    assert whole.complete
    assert proxied.asked == 72
    assert gate(whole, baseline, eval_settings).verdict is Verdict.PASSED


def test_a_proxy_that_garbles_answers_does_not_pass(
    baseline: Answers, proxied: Proxied, eval_release: Release, eval_settings: Settings
) -> None:
    proxied.garble = lambda text: text[::2]
    found = gate(answers(proxied, another(eval_release, "--slots"), eval_settings, silent), baseline, eval_settings)
    print(found.summary)
    assert found.verdict is Verdict.FAILED


def test_a_wrong_chat_template_does_not_pass(baseline: Answers, eval_release: Release, eval_settings: Settings) -> None:
    release = another(eval_release, "--chat-template", "llama2")
    found = gate(answers(LocalPlatform(eval_settings), release, eval_settings, silent), baseline, eval_settings)
    print(found.summary)
    assert found.verdict in (Verdict.FAILED, Verdict.INCONCLUSIVE)


def test_it_is_quiet_leaves_nothing_behind_and_runs_beside_a_running_event_loop(
    eval_release: Release, eval_settings: Settings, capfd: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    release = another(eval_release, "--no-warmup")

    async def flow() -> Answers:
        return await asyncio.to_thread(answers, LocalPlatform(eval_settings), release, eval_settings, silent)

    assert asyncio.run(flow()).complete
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert list(tmp_path.iterdir()) == []
    stored = eval_settings.store / "answers" / release.id
    assert os.listdir(stored) == [f"{item_set(eval_settings).digest}.json"]
