import zipfile
from pathlib import Path

import pytest

from tasks.approval.page import page
from tasks.contracts.promises import CONTRACTS
from tasks.contracts.scripted import build, thinks_then_answers
from tasks.patches.series import read_series
from tasks.platforms.local import LocalPlatform
from tasks.preflight import wants
from tasks.release import BadInput, Change, Dossier, ReleaseNotes, ToolingError, UpstreamRelease
from tasks.settings import ServerSettings, Settings
from tasks.store import Store
from tasks.upstream import history, open_upstream
from tasks.upstream.notes import SHOWN, Assessment, assess, assess_all, digest, read
from tasks.upstream.ours import Ours, used_by
from tasks.upstream.pypi import Pypi
from tasks.upstream.risk import Risk
from tasks.upstream.rules import RULES, Area
from tasks.upstream.stage import changed
from tests.test_release import a_release
from tests.upstream.labelled import COUNTED, SPLIT, judged, labelled, reference, warned

REPOSITORY = Path(__file__).parent.parent.parent
USED = reference(REPOSITORY / "patches")


def change(title: str, *, body: str = "", files: tuple[str, ...] = (), build: int = 9000, pull: int = 1) -> Change:
    return Change(build=build, pull=pull, title=title, body=body, files=files)


SAYING = {
    "says itself that it breaks something": "llama : new sampler interface (breaking change)",
    "takes something away": "server : drop the self-extend feature",
    "takes something old away, or a name that others may use": "common : cleanup | removes the `top_a` parameter",
    "gives something another name": "arg : `--foo-bar` --> `--bar-foo`",
    "mends a name: the old one may not be taken any more": "common : fix spelling of the cache argument",
    "changes a default": "llama : use the iGPU by default",
    "says that a default is another one": "server : prompt cache | The cache is now enabled by default.",
    "turns an option of the build on or off": "ggml : flip GGML_CUDA_GRAPHS to on",
    "takes a build option away or gives it another name": "cmake : rename LLAMA_CUBLAS",
    "asks for more than before, or refuses what it took": "chat : require a user message",
    "is about to take something away": "server : deprecate the infill route",
    "takes back what was there": "Revert: kv-cache quantisation",
    "changes statuses, errors or who may ask": "server : answer 413 to a large body",
    "replaces one way by another": "spec : rework CLI",
    "does otherwise than before, asked or not": "server : (router) limit what is loaded",
    "another parser or template for our model": "chat : Gemma 4 template",
}


def test_every_rule_has_a_title_that_it_alone_is_about() -> None:
    assert [rule.means for rule in RULES] == list(SAYING)


@pytest.mark.parametrize(("means", "said"), SAYING.items())
def test_a_rule_finds_its_words_and_shows_them(means: str, said: str) -> None:
    title, _, body = said.partition(" | ")
    found = assess(change(title, body=body), USED)
    assert found.risk in (Risk.MAY_BREAK, Risk.MAY_BREAK_US)
    words = next(why for why in found.why if why.startswith(means)).removeprefix(means + ": `").removesuffix("`")
    assert words in f"{title}\n{body}"


@pytest.mark.parametrize(
    "title",
    [
        "server : add a route for reranking",
        "server : fix a crash on an empty prompt",
        "server : remove unused functions",
        "common : remove redundant includes",
        "llama : refactor the graph",
        "chat : add a parser for Kimi",
        "docs : rename the options in the README",
        "tests : require a model",
        "vulkan: remove the F16 path by default",
    ],
)
def test_what_adds_mends_or_is_not_seen_from_outside_breaks_nothing(title: str) -> None:
    assert assess(change(title), USED).risk is Risk.NONE


def test_other_backends_and_programs_break_nothing_of_ours_unless_a_program_names_a_flag() -> None:
    assert assess(change("metal : disable residency sets by default"), USED).why == (
        "`metal` is no part of our server",
    )
    assert warned(assess(change("ui : remove --webui"), USED))
    cpu = Ours(backend="cpu")
    assert assess(change("CUDA: require opt-in for P2P"), cpu).risk is Risk.NONE
    assert assess(change("CUDA: require opt-in for P2P"), USED).touches == ("backend cuda",)


def test_what_is_ours_is_read_from_the_code_that_uses_it(tmp_path: Path) -> None:
    model = build(thinks_then_answers(), tmp_path / "model.gguf")
    settings = Settings(server=ServerSettings(model=model), patches=REPOSITORY / "patches")
    used = used_by(settings)
    assert used.architecture == "gemma4"
    flags = {word for want in wants(settings.server) for words in want.spellings for word in words if word[:2] == "--"}
    assert all(any(f"({flag})" in what for what in used.words) for flag in flags)
    assert set(used.files) == {diff.path for patch in read_series(settings.patches) for diff in patch.files}
    for name in ("/v1/chat/completions", "/metrics", "thinking_budget_tokens", "enable_thinking", "cache_prompt"):
        assert any(what.startswith("contracts ") and name in what for what in used.words), name
    subjects = {name.split(".")[1] for name in CONTRACTS}
    told = [what.removeprefix("contracts ").split(" (")[0] for what in used.words if what.startswith("contracts ")]
    assert {subject for words in told for subject in words.split(", ")} <= subjects
    assert used_by(Settings(patches=REPOSITORY / "patches")).architecture == ""


@pytest.mark.parametrize(
    ("title", "what"),
    [
        ("arg : remove --flash-attn", "setting flash_attention (--flash-attn)"),
        ("llama : set flash attention to auto by default", "setting flash_attention (--flash-attn)"),
        ("server : remove n-gpu-layers from the settings", "setting gpu_layers (--n-gpu-layers)"),
        ("server : drop /metrics", "contracts metrics (route /metrics)"),
        (
            "server : rename `thinking_budget_tokens`",
            "contracts responses, state, thinking, twins (field thinking_budget_tokens)",
        ),
        ("chat : strict Gemma-4 thoughts", "model architecture gemma4"),
        ("cmake : rename GGML_NATIVE", "build option GGML_NATIVE"),
    ],
)
def test_a_break_of_what_we_use_names_it(title: str, what: str) -> None:
    found = assess(change(title), USED)
    assert found.risk is Risk.MAY_BREAK_US
    assert what in found.touches


@pytest.mark.parametrize(
    "title",
    ["arg : remove --flash-attn-type", "server : drop /metrics-old", "chat : strict gemma 40", "arg : remove -fa"],
)
def test_a_name_that_only_begins_like_ours_is_not_ours(title: str) -> None:
    assert assess(change(title), USED).touches == ()


def test_a_body_names_ours_only_where_something_breaks() -> None:
    told = "Run `llama-server --flash-attn on`."
    assert assess(change("server : faster slots", body=told), USED).risk is Risk.NONE
    assert assess(change("server : remove slots", body=told), USED).risk is Risk.MAY_BREAK_US


def test_files_tell_of_our_patches_and_of_where_flags_are_declared() -> None:
    patched = assess(change("chat : faster", files=("common/chat.cpp", "README.md")), USED)
    assert patched.risk is Risk.TOUCHES_US
    assert patched.touches == ("patch 0001-gemma4-thinking-tags.patch (common/chat.cpp)",)
    flags = assess(change("server : fix checkpoints", files=("common/arg.cpp",)), USED)
    assert flags.risk is Risk.MAY_BREAK
    assert flags.why == ("touches common/arg.cpp: flags are declared there",)
    assert assess(change("server : add --foo", files=("common/arg.cpp",)), USED).risk is Risk.NONE


@pytest.mark.parametrize(
    ("title", "files", "area"),
    [
        ("server : faster slots", (), Area.SERVER),
        ("jinja : fix macros", (), Area.CHAT),
        ("vocab : a new pre-tokenizer", (), Area.TOKENIZER),
        ("ggml-cpu: AVX512", (), Area.GGML),
        ("CUDA: faster FA", (), Area.CUDA),
        ("gguf : check sizes", (), Area.GGUF),
        ("model : support Gemma 5", (), Area.GEMMA),
        ("top-n-sigma : no sort; sampling", (), Area.SAMPLING),
        ("cmake : find NCCL", (), Area.BUILD),
        ("faster", ("ggml/src/ggml-cuda/fattn.cu",), Area.CUDA),
        ("faster", ("common/parsers/gemma4.cpp",), Area.GEMMA),
        ("faster", ("tools/server/CMakeLists.txt",), Area.BUILD),
    ],
)
def test_an_area_is_known_by_words_or_files(title: str, files: tuple[str, ...], area: Area) -> None:
    assert area in assess(change(title, files=files), USED).areas


def notes(*changes: Change, until: int = 9100) -> ReleaseNotes:
    return ReleaseNotes(low=8999, high=9100, until=until, changes=changes)


MIXED = notes(
    change("vulkan: faster", build=9001, pull=1),
    change("server : remove slots", build=9002, pull=2),
    change("chat : Gemma 4 is faster", build=9003, pull=3),
    change("arg : remove --flash-attn", build=9004, pull=4),
    change("server : drop infill", build=9005, pull=5),
    change("ggml : faster", build=9005, pull=6),
)


def test_the_riskiest_comes_first_and_then_the_newest() -> None:
    found = assess_all(MIXED, USED)
    assert [c.pull for c in found.changes] == [4, 5, 2, 3, 6, 1]
    assert found.summary == "6 changes read (5 of 101 builds are told of), 2 touch what we use, 1 may break it"


def test_the_digest_lists_what_may_break_and_counts_the_rest() -> None:
    page = digest(assess_all(MIXED, USED))
    rows = [line for line in page.splitlines() if line.startswith("| may")]
    assert [row.split("#")[1][0] for row in rows] == ["4", "5", "2"]
    assert "setting flash_attention (--flash-attn)" in rows[0] and r"\`remove\`" in rows[0]
    assert "- b9003 #3 chat : Gemma 4 is faster" in page
    assert page.endswith("The rest, by area: 1 ggml core, 1 others.")
    assert page.startswith(f"b8999 to b9100: {assess_all(MIXED, USED).summary}.")


def test_the_digest_stays_short_but_hides_nothing_of_ours() -> None:
    others = [change(f"server : drop part {n}", build=9001 + n, pull=n) for n in range(SHOWN + 7)]
    mine = [change("arg : remove --jinja", build=9040 + n, pull=100 + n) for n in range(SHOWN + 3)]
    found = assess_all(notes(*others, *mine), USED)
    assert [c.risk for c in found.shown] == [Risk.MAY_BREAK_US] * (SHOWN + 3) + [Risk.MAY_BREAK] * SHOWN
    assert "And 7 older ones of risk `may break`." in digest(found)


def test_notes_that_stop_short_say_where() -> None:
    found = assess_all(notes(until=9050), USED)
    assert found.summary.endswith("; the notes end at b9050")
    assert "the notes end at b9050" in digest(found)


def dead(_low: int, _high: int) -> ReleaseNotes:
    raise ToolingError("the package index could not be read", evidence="connection refused\nmore")


def test_notes_that_cannot_be_read_stop_nothing_and_say_so() -> None:
    found = read(dead, 8999, 9100, USED)
    assert found.summary == "what changed is not known: the package index could not be read: connection refused"
    assert digest(found).startswith("**What changed upstream is not known:**")
    assert found.changes == ()


def test_notes_that_end_before_production_tell_nothing_and_say_so() -> None:
    found = read(lambda low, high: history.between([], low, high), 11401, 11434, USED)
    assert found.summary == "what changed is not known: upstream's notes end at b10359"


class Dead(Pypi):
    """An upstream whose notes cannot be read."""

    def changes(self, low: int, high: int, files: bool = True) -> ReleaseNotes:  # noqa: ARG002
        return dead(low, high)


def test_only_a_way_forward_has_notes() -> None:
    settings = Settings(patches=REPOSITORY / "patches")
    target = UpstreamRelease(build=9100)
    upstream = Dead(settings.upstream, settings.cache)
    assert changed(upstream, settings, None, target) is None
    assert changed(upstream, settings, 9100, target) is None
    found = changed(upstream, settings, 9000, target)
    assert found and found.problem


def test_an_assessment_is_json_on_disk() -> None:
    found = assess_all(MIXED, USED)
    assert Assessment.model_validate_json(found.model_dump_json()) == found


def test_the_approver_sees_the_digest_on_the_dossier_s_page(store: Store) -> None:
    dossier = Dossier(release=a_release(), required=(), verifications=())
    read = page(LocalPlatform(Settings(store=store.root)), dossier, None, assess_all(MIXED, USED))
    assert read.index("What changed upstream") < read.index("b9004 #4 arg : remove --flash-attn")
    assert "What changed upstream" not in page(LocalPlatform(Settings(store=store.root)), dossier, None, None)


CHANGELOG = """Metadata-Version: 2.1

- **b9002**: server : drop infill ([#7](https://example.invalid/7))
  - <!-- Describe what this does -->
  - It was of no use.
  - I have read the [contributing guidelines](https://example.invalid)

- **b9001**: ggml : faster ([#6](https://example.invalid/6))
- **b9005**: server : drop infill ([#7](https://example.invalid/7))
"""


def wheel(folder: Path, text: str) -> Path:
    path = folder / "some-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("some-1.dist-info/METADATA", text)
    return path


def test_a_changelog_gives_each_pull_request_once_with_its_author_s_words(tmp_path: Path) -> None:
    first, second = history.read_changes(wheel(tmp_path, CHANGELOG))
    assert (first.build, first.pull, first.title, first.body) == (9001, 6, "ggml : faster", "")
    assert (second.build, second.pull, second.body) == (9002, 7, "It was of no use.")


def test_a_wheel_without_a_changelog_is_trouble_and_not_good_news(tmp_path: Path) -> None:
    with pytest.raises(ToolingError, match="holds no changelog"):
        history.read_changes(wheel(tmp_path, "Metadata-Version: 2.1\n"))
    (tmp_path / "cut.whl").write_bytes(b"PK\x03\x04")
    with pytest.raises(ToolingError, match="cannot be read"):
        history.read_changes(tmp_path / "cut.whl")


def test_a_missing_patch_series_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no patch series"):
        used_by(Settings(patches=tmp_path))


def test_the_labelled_changes_are_well_formed() -> None:
    records = labelled()
    assert len(records) >= 450
    assert len({record.pull for record in records}) == len(records)
    for record in records:
        assert record.breaking == (record.kind != "none"), record
        assert record.reason and record.title, record
        if record.build:
            assert (record.part == "earlier") == (record.build < SPLIT), record


def test_the_rules_miss_no_more_of_the_earlier_part_than_they_did() -> None:
    earlier = [record for record in labelled() if record.part == "earlier"]
    found = judged(earlier, USED)
    assert sum(record.kind in COUNTED for record in earlier) == 14
    assert {record.pull for record, told in found if record.breaking and not warned(told)} <= {10803}
    false_alarms = [record for record, told in found if not record.breaking and warned(told)]
    assert len(false_alarms) <= 12, false_alarms


@pytest.mark.real
def test_the_labelled_changes_are_all_changes_of_the_real_changelog(base: Settings) -> None:
    real = {c.pull: c for c in open_upstream(base).changes(0, history.CHANGELOG_END).changes}
    records = {record.pull: record for record in labelled() if record.source == "changelog"}
    assert set(records) == set(real)
    assert all((real[p].build, real[p].title) == (record.build, record.title) for p, record in records.items())
    assert not set(real) & {record.pull for record in labelled() if record.source == "github"}
