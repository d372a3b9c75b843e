"""What proves a patch beside promises: how it is written, and what it says of real builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import probes
from tasks.contracts.probes import KINDS, probes_of
from tasks.patches.series import read_patch
from tasks.platforms.local import LocalPlatform
from tasks.release import BadInput, Build, Recipe, SourceTree, UpstreamRelease, Verdict, now
from tasks.settings import LocalSettings, ServerSettings, Settings
from tasks.sources import Sources
from tests.patches.conftest import tree_of

OPTION = 'option(GGML_FAST "ggml: go fast" {})\n'
DIFF = """\
diff --git a/common/arg.cpp b/common/arg.cpp
--- a/common/arg.cpp
+++ b/common/arg.cpp
@@ -1 +1,4 @@
 x
+        {"-tb", "--tool-budget"}, "N",
+    LOG_INF("%s: the budget of tools is %d\\n", __func__, 1);
+    SRV_WRN("the tools have a budget of %d (chat)\\n", 1);
"""


def test_a_proof_is_a_promise_or_one_of_the_kinds_and_several_lines_are_all_owed(tmp_path: Path) -> None:
    path = tmp_path / "0001-x.patch"
    lines = ["Proved-by: tools.named tools.named_unknown", "Proved-by: argv :: --load-mode none", "Why: so."]
    path.write_text("A title\n\n" + "\n".join([*lines, "Proved-by: log :: ^budget: \\d+$"]) + f"\n\n{DIFF}")
    assert probes_of(read_patch(path).trailers["Proved-by"]) == (
        "tools.named", "tools.named_unknown", "argv :: --load-mode none", "log :: ^budget: \\d+$"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("trailer", "why"),
    [
        ("", "names no probe"),
        ("feeling :: good", "no kind of proof is called 'feeling'"),
        ("log :: (", "can't be read"),
        ("argv :: load-mode none", "is no such proof"),
        ("argv :: --say 'it", "can't be read"),
        ("cmake :: GGML_FAST", "is no such proof"),
        ("binary :: ", "is no such proof"),
    ],
)
def test_what_is_no_proof_is_refused(trailer: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        probes_of(trailer)


def test_a_proof_is_proposed_of_each_kind_that_could_see_the_patch(tmp_path: Path) -> None:
    path = tmp_path / "0001-x.patch"
    path.write_text(DIFF)
    found = probes.proposed(read_patch(path))
    assert {"argv :: --tool-budget", "log :: the tools have a budget of "} <= set(found)
    assert all(probes_of(proof) for proof in found)


def built_of(settings: Settings, files: dict[str, str]) -> Build:
    tree = tree_of(Sources(settings.cache), files)
    source = SourceTree(upstream=UpstreamRelease(build=1), archive_sha256="", upstream_tree=tree, tree=tree)
    return Build(
        digest="0", source=source, recipe=Recipe(), toolchain={}, version="", files={}, seconds=0, objects=0,
        cache_hits=0, built_at=now(),
    )  # fmt: skip


def test_an_option_has_the_default_that_the_tree_gives_it(tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "store", cache=tmp_path / "cache")
    platform = LocalPlatform(settings)
    with_it = built_of(settings, {"ggml/CMakeLists.txt": OPTION.format("ON")})
    without = built_of(settings, {"ggml/CMakeLists.txt": OPTION.format("OFF")})
    name = "cmake :: GGML_FAST=ON"
    assert probes.run(platform, settings, with_it, [name])[name].verdict is Verdict.PASSED
    seen = probes.run(platform, settings, without, [name])[name]
    assert (seen.verdict, seen.fault, seen.said) == (Verdict.FAILED, True, "ggml/CMakeLists.txt:1 has it OFF")
    none = "cmake :: GGML_SLOW=ON"
    assert probes.run(platform, settings, with_it, [none])[none].said == "there is no option GGML_SLOW"


@pytest.mark.real
def test_argv_binary_and_log_say_of_a_real_build_what_is_so(base: Settings, build: Build, smollm2: Path) -> None:
    server = ServerSettings(model=smollm2, alias="m", ctx_per_slot=1024, threads=1)
    settings = base.model_copy(update={"server": server, "local": LocalSettings(staging_port=0, production_port=0)})
    so = ["argv :: --load-mode none", "binary :: thinking_budget_tokens", "log :: llama_server: listening on http"]
    not_so = ["argv :: --no-mmap", "binary :: no such text is in it", "log :: ^no such line$"]
    found = probes.run(LocalPlatform(settings), settings, build, [*so, *not_so])
    assert {name: seen.verdict for name, seen in found.items()} == (
        dict.fromkeys(so, Verdict.PASSED) | dict.fromkeys(not_so, Verdict.FAILED)
    )
    assert all(found[name].fault for name in not_so)
    assert "listening on http://127.0.0.1" in found[so[2]].said
    assert list(found) == [*so, *not_so]
    assert set(KINDS) >= {name.partition(" :: ")[0] for name in found}
