"""What the comparison of API surfaces finds between real builds, and what it costs.

The cases are what is known to have changed between them; each is looked for among the differences of its bump. The
first time compiles the builds that the cache does not have.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from flows.demo import model as demo_model
from tasks.platforms.local import LocalPlatform
from tasks.preflight import SURFACE, bundle, compare_with_production
from tasks.preflight.compare import Difference, Kind, What
from tasks.release import Build, Release
from tasks.report import markdown_table
from tasks.settings import ServerSettings, Settings, load
from tasks.store import Store
from tests.conftest import build_of, first_patch_alone

BUMPS = (("b8672", "b9105"), ("b9105", "b10605"), ("b10605", "b11434"))
CASES: tuple[tuple[str, Kind, str, What, str], ...] = (
    ("b9105", Kind.ROUTE, "POST /api/show", What.REMOVED, ""),
    ("b9105", Kind.ROUTE, "GET /api/tags", What.REMOVED, "GET /v1/models"),
    ("b9105", Kind.ROUTE, "POST /api/chat", What.REMOVED, "POST /v1/chat/completions"),
    ("b10605", Kind.FLAG, "--webui", What.RENAMED, "--ui"),
    ("b10605", Kind.FLAG, "--webui-config", What.RENAMED, "--ui-config"),
    ("b10605", Kind.VARIABLE, "LLAMA_ARG_WEBUI", What.RENAMED, "LLAMA_ARG_UI"),
    ("b10605", Kind.VARIABLE, "LLAMA_ARG_WEBUI_CONFIG", What.RENAMED, "LLAMA_ARG_UI_CONFIG"),
    ("b10605", Kind.VARIABLE, "LLAMA_CHAT_TEMPLATE_KWARGS", What.RENAMED, "LLAMA_ARG_CHAT_TEMPLATE_KWARGS"),
    ("b10605", Kind.FLAG, "--timeout", What.DEFAULT_CHANGED, "3600"),
    ("b10605", Kind.STATUS, "GET /v1/models, no key", What.STATUS_CHANGED, "401"),
    ("b10605", Kind.KEY, "webui", What.RENAMED, "ui"),
    ("b10605", Kind.KEY, "webui_settings", What.RENAMED, "ui_settings"),
    ("b11434", Kind.FLAG, "--no-mmap", What.REMOVED, "--load-mode"),
    ("b11434", Kind.STATUS, "POST /v1/chat/completions, malformed JSON", What.STATUS_CHANGED, "400"),
)
"""(candidate, kind, name, class, what comes after it)."""


def main() -> Iterator[str]:
    """Lines of the report."""
    known = load()
    tags = sorted({tag for bump in BUMPS for tag in bump}, key=lambda tag: int(tag[1:]))
    with tempfile.TemporaryDirectory(prefix="llama-release-bench-") as folder:
        (series := Path(folder) / "patches").mkdir()
        old = first_patch_alone(known.model_copy(update={"store": known.cache / "test-store"}), series)
        server = ServerSettings(model=demo_model(known.cache), alias="m", ctx_per_slot=1024, threads=1)
        settings = old.model_copy(update={"store": Path(folder) / "store", "server": server})
        builds = {tag: build_of(old, tag) for tag in tags}
        for build in builds.values():
            shutil.copytree(Store(old.store).build_dir(build.digest), Store(settings.store).build_dir(build.digest))
        found: dict[str, list[Difference]] = {}
        for production, candidate in BUMPS:
            without, found[candidate], summary = _timed(settings, builds[production], builds[candidate], forget=tags)
            stored, _, _ = _timed(settings, builds[production], builds[candidate], forget=[candidate])
            again, _, _ = _timed(settings, builds[production], builds[candidate], forget=[])
            yield f"{production} -> {candidate}: {summary}"
            yield (
                f"  argv and comparison in {without:.1f} s, {stored:.1f} s with production's surface stored, "
                f"{again:.1f} s with both"
            )
        kinds = [kind for kind in Kind if any(d.kind is kind for each in found.values() for d in each)]
        counts = {tag: Counter((d.kind, d.what) for d in each) for tag, each in found.items()}
        yield markdown_table(
            ("candidate", "class", *kinds),
            [
                (tag, w, *(counts[tag][k, w] or "" for k in kinds))
                for tag in found
                for w in What
                if _any(counts[tag], w)
            ],
        )
        seen = [(case, _is_found(found[case[0]], case)) for case in CASES]
        yield markdown_table(
            ("candidate", "known change", "class", "to", "found"),
            [(tag, f"{kind} {name}", what, to, "yes" if yes else "NO") for (tag, kind, name, what, to), yes in seen],
        )
        yield f"{sum(yes for _, yes in seen)} of {len(seen)} known changes found"


def _timed(
    settings: Settings, production: Build, candidate: Build, forget: list[str]
) -> tuple[float, list[Difference], str]:
    """Seconds of what the stage does for a candidate, once what the store knows of the tags to forget is gone."""
    platform = LocalPlatform(settings)
    before = _release(platform, settings, production)
    release = _release(platform, settings, candidate)
    (settings.store / "dossiers" / release.id / f"{SURFACE}.json").unlink(missing_ok=True)
    for path in (settings.store / "surfaces").glob("*.json"):
        if any(build.tag in forget and path.name.startswith(build.digest) for build in (production, candidate)):
            path.unlink()
    start = time.monotonic()
    _release(platform, settings, candidate)
    verified = compare_with_production(platform, settings, candidate, release, before)
    seconds = time.monotonic() - start
    return seconds, [Difference.model_validate(each) for each in verified.evidence["differences"]], verified.summary


def _release(platform: LocalPlatform, settings: Settings, build: Build) -> Release:
    return bundle(platform.store, build, settings.server)[0]


def _is_found(differences: list[Difference], case: tuple[str, Kind, str, What, str]) -> bool:
    _, kind, name, what, to = case
    return any((d.kind, d.what, d.after) == (kind, what, to) and name in d.names for d in differences)


def _any(counts: Counter[tuple[Kind, What]], what: What) -> bool:
    return any(n for (_, each), n in counts.items() if each is what)
