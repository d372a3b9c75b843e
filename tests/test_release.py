import pickle

import pytest
from pydantic import ValidationError

from tasks.release import (
    NOT_ASKED,
    SERVER_SAID,
    BadInput,
    Build,
    Dossier,
    Endpoint,
    FileRef,
    Problem,
    Recipe,
    Release,
    ReleaseFailed,
    SourceTree,
    ToolingError,
    UpstreamRelease,
    Verdict,
    Verification,
    by_cause,
    now,
    settle,
)


def a_release(**changes: object) -> Release:
    return Release.model_validate(
        {
            "upstream": UpstreamRelease(build=11434),
            "tree": "t" * 40,
            "build": "b1",
            "argv": ("--model", "{model}"),
            "files": {"model": FileRef(name="m.gguf", sha256="0" * 64, size_bytes=1)},
            "alias": "m",
            **changes,
        }
    )


def a_build(**changes: object) -> Build:
    upstream = UpstreamRelease(build=11434)
    return Build.model_validate(
        {
            "digest": "b1",
            "source": SourceTree(upstream=upstream, archive_sha256="a", upstream_tree="u", tree="t" * 40),
            "recipe": Recipe(),
            "toolchain": {},
            "version": "version: 11434",
            "files": {},
            "seconds": 1.0,
            "objects": 1,
            "cache_hits": 0,
            "built_at": now(),
            **changes,
        }
    )


def seen(name: str, verdict: Verdict = Verdict.PASSED, summary: str = "s") -> Verification:
    return Verification(name=name, release="r", verdict=verdict, summary=summary)


def test_everything_that_makes_a_release_is_in_its_id() -> None:
    other_file = {"model": FileRef(name="m.gguf", sha256="1" * 64, size_bytes=1)}
    changed = [
        a_release(upstream=UpstreamRelease(build=11401)),
        a_release(tree="u" * 40),
        a_release(build="b2"),
        a_release(argv=("--model", "{model}", "--metrics")),
        a_release(files=other_file),
        a_release(alias="n"),
    ]
    ids = {r.id for r in [a_release(), *changed]}
    assert len(ids) == len(changed) + 1


def test_when_upstream_published_it_is_not_in_the_id() -> None:
    assert a_release(upstream=UpstreamRelease(build=11434, stable="v0.6.0")).id == a_release().id


def test_a_build_is_another_when_source_recipe_or_toolchain_is() -> None:
    source = SourceTree(upstream=UpstreamRelease(build=1), archive_sha256="a", upstream_tree="t", tree="t")
    digests = {
        Build.identity(source, Recipe(), {"c++": "12"}),
        Build.identity(source, Recipe(), {"c++": "13"}),
        Build.identity(source, Recipe(cmake={"GGML_NATIVE": "OFF"}), {"c++": "12"}),
        Build.identity(source.model_copy(update={"tree": "u"}), Recipe(), {"c++": "12"}),
    }
    assert len(digests) == 4


def test_a_dossier_with_a_failed_errored_or_missing_verification_has_blockers() -> None:
    good = Dossier(release=a_release(), required=("a", "b"), verifications=(seen("a"), seen("b")))
    assert good.blockers == ()
    undecided = good.model_copy(update={"verifications": (seen("a"), seen("b", Verdict.INCONCLUSIVE))})
    assert undecided.blockers == ()
    for bad in (
        good.model_copy(update={"verifications": (seen("a"),)}),
        good.model_copy(update={"verifications": (seen("a"), seen("b", Verdict.FAILED))}),
        good.model_copy(update={"verifications": (seen("a"), seen("b", Verdict.ERRORED))}),
    ):
        assert len(bad.blockers) == 1
        assert "b" in bad.blockers[0]


def test_a_dossier_digest_changes_with_what_was_seen_and_not_with_when() -> None:
    first = Dossier(release=a_release(), required=("a",), verifications=(seen("a"),))
    later = Dossier(release=a_release(), required=("a",), verifications=(seen("a"),))
    other = Dossier(release=a_release(), required=("a",), verifications=(seen("a", summary="else"),))
    assert first.verifications[0].at != later.verifications[0].at
    assert first.digest == later.digest
    assert first.digest != other.digest


def test_settling_tells_a_bad_release_from_our_own_trouble() -> None:
    settle([seen("a"), seen("b", Verdict.INCONCLUSIVE)])
    with pytest.raises(ReleaseFailed, match="b failed"):
        settle([seen("a", Verdict.ERRORED), seen("b", Verdict.FAILED)])
    with pytest.raises(ToolingError, match="a errored"):
        settle([seen("a", Verdict.ERRORED)])


def lost(name: str, verdict: Verdict, summary: str = "killed by SIGSEGV", *, asked: bool = False) -> Verification:
    evidence = {SERVER_SAID: f"the last words under {name}"} | ({} if asked else {NOT_ASKED: summary})
    return seen(name, verdict, summary).model_copy(update={"evidence": evidence})


def test_what_could_not_be_asked_for_one_reason_is_one_line_with_its_count_and_the_servers_words_once() -> None:
    names = [f"contracts.s.p{n}" for n in range(30)]
    with pytest.raises(ToolingError) as alone:
        settle([lost(name, Verdict.ERRORED) for name in names])
    assert alone.value.what == "30 contracts could not be asked: killed by SIGSEGV"
    assert alone.value.evidence == "the last words under contracts.s.p0"
    others = [seen("contracts.s.q", Verdict.FAILED, "newly broken"), lost("contracts.s.r", Verdict.FAILED, asked=True)]
    with pytest.raises(ReleaseFailed) as mixed:
        settle([*others, *(lost(name, Verdict.FAILED) for name in names), lost("evals", Verdict.FAILED, "no port")])
    assert mixed.value.what == "contracts.s.r: killed by SIGSEGV, and 32 more"
    assert mixed.value.evidence.splitlines() == [
        "contracts.s.r: killed by SIGSEGV",
        "  the last words under contracts.s.r",
        "30 contracts could not be asked for that reason",
        "evals could not be asked: no port",
        "  the last words under evals",
        "contracts.s.q: newly broken",
    ]


def test_verdicts_are_not_mixed_in_a_group() -> None:
    found = [lost("a", Verdict.FAILED), lost("b", Verdict.ERRORED), lost("c", Verdict.FAILED), seen("d"), seen("e")]
    assert [[v.name for v in group] for group in by_cause(found)] == [["a", "c"], ["b"], ["d"], ["e"]]


@pytest.mark.parametrize("kind", [BadInput, ReleaseFailed, ToolingError])
def test_a_problem_survives_pickling_with_its_three_parts(kind: type[Problem]) -> None:
    back = pickle.loads(pickle.dumps(kind("what", evidence="seen", todo="do")))
    assert type(back) is kind
    assert str(back) == "what\n  evidence: seen\n  next:     do"


def test_an_api_key_is_in_no_dump_and_no_repr() -> None:
    endpoint = Endpoint(base_url="http://127.0.0.1:1", api_key="hunter2")
    assert "hunter2" not in repr(endpoint) + str(endpoint) + endpoint.model_dump_json()


def test_models_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        a_release().alias = "x"
    with pytest.raises(ValidationError):
        a_release(colour="red")


def test_no_error_says_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-secret-of-somebody")
    secret = "a-secret-of-somebody"
    problem = Problem(f"{secret} was refused", evidence=f"said {secret}", todo=f"ask {secret}")
    assert (problem.what, problem.evidence, problem.todo) == (
        "[SOME_TOKEN] was refused", "said [SOME_TOKEN]", "ask [SOME_TOKEN]",
    )  # fmt: skip
    assert secret not in f"{problem} {problem!r}"
