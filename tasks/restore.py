"""Forced idle window and restore probe: does it come back, how fast, and does it still say the same?"""

from __future__ import annotations

import time

from tasks.endpoint import Client, Stream
from tasks.platforms import Platform
from tasks.release import BootKind, Release, StageName, ToolingError, Verdict, Verification, digest_of
from tasks.report import Row, markdown_table, stage
from tasks.settings import RestoreSettings

NAME = "restore"
QUESTION = "Write one sentence about the sea."
ASK = {"temperature": 0.0, "seed": 1, "max_tokens": 24, "cache_prompt": False}


def basis(settings: RestoreSettings) -> str:
    """Digest of what a restore verification depends on besides the release."""
    return digest_of([settings.model_dump(), QUESTION, ASK])[:12]


def probe(platform: Platform, stage_name: StageName, release: Release, settings: RestoreSettings) -> Verification:
    """One idle cycle of a stage. Raises ToolingError when the idle window cannot be forced."""
    start = time.monotonic()
    with Client(platform.endpoint(stage_name)) as client:
        before = _ask(client)
        left = platform.idle(stage_name)
        if left:
            raise ToolingError(
                f"{stage_name} did not go idle",
                evidence=f"{left} llama-server processes are left",
                todo=f"look at {platform.logs(stage_name)}",
            )
        known = len(platform.boots(stage_name))
        time.sleep(settings.wait_s)
        after = _ask(client)
        warm = _ask(client)
    boots = platform.boots(stage_name)[known:]
    return judge(release, before, after, warm, [b.kind for b in boots], settings).model_copy(
        update={
            "seconds": time.monotonic() - start,
            "evidence": {
                "question": QUESTION,
                "answer_before": before.text,
                "answer_after": after.text,
                "ttft_after_idle_s": after.ttft_s,
                "ttft_warm_s": warm.ttft_s,
                "processes_while_idle": left,
                "boots": [b.model_dump(mode="json") for b in boots],
            },
        }
    )


def judge(
    release: Release, before: Stream, after: Stream, warm: Stream, boots: list[BootKind], settings: RestoreSettings
) -> Verification:
    """The verdict on one idle cycle: a boot must have happened, well, and the answer must be the same."""

    def verdict(found: Verdict, summary: str) -> Verification:
        return Verification(
            name=NAME,
            release=release.id,
            verdict=found,
            summary=summary,
            promise="the first request after an idle window gets the same answer (guide, playbook step 5)",
            basis=basis(settings),
        )

    numbers = f"first token {_s(after.ttft_s)} after idle, {_s(warm.ttft_s)} warm"
    if not boots:
        return verdict(Verdict.ERRORED, "a request was answered after the idle window and no boot was recorded")
    if len(boots) > 1 or boots[-1] in (BootKind.CRASHED, BootKind.FELL_BACK):
        return verdict(Verdict.FAILED, f"it came up as {', '.join(boots)}; {numbers}")
    if before.status != 200 or not before.text:
        return verdict(Verdict.ERRORED, f"there was no answer to compare with: status {before.status}")
    if after.status != 200 or after.text != before.text:
        return verdict(Verdict.FAILED, f"the answer after the idle window differs (status {after.status}); {numbers}")
    if boots[-1] is BootKind.COLD and not settings.accept_cold:
        return verdict(Verdict.INCONCLUSIVE, f"cold: there is no snapshot here; same answer; {numbers}")
    return verdict(Verdict.PASSED, f"{boots[-1]}, same answer; {numbers}")


def _ask(client: Client) -> Stream:
    return client.stream(QUESTION, **ASK)


def _s(seconds: float | None) -> str:
    return "none" if seconds is None else f"{seconds:.2f} s"


@stage(NAME, "restore probe of {release.label} on {stage_name}")
def check(
    row: Row, platform: Platform, stage_name: StageName, release: Release, settings: RestoreSettings
) -> Verification:
    """Force an idle window on a stage and prove that it comes back; recorded in the release's dossier."""
    found = platform.store.fresh(release.id, (NAME,), basis(settings))
    again = bool(found)
    if not found:
        row.progress(0, 1, "forcing an idle window")
        found = [probe(platform, stage_name, release, settings)]
        platform.store.record(found[0])
    (made,) = found
    seen = made.evidence
    boots = [(b["kind"], b["health_s"], b["reason"]) for b in seen["boots"]]
    row.judged(
        found,
        made.summary,
        markdown_table(("what", "seen"), [(k, v) for k, v in seen.items() if k != "boots"])
        + "\n\n"
        + markdown_table(("boot", "seconds to health", "reason"), boots),
        again=again,
        detail={name: seen[name] for name in ("ttft_after_idle_s", "ttft_warm_s")},
    )
    return made
