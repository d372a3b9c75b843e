"""Whatever stands in settings, store, environment and arguments: a command ends in words, and one that fails changes
nothing.

Commands run in this process, so that a thousand cases take seconds; `tests/test_refused_by_the_system.py` has the real
command line. None of these commands starts a Prefect server.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from flows.__main__ import main
from tasks.platforms.local.control import Deployment, save_deployment, save_wake
from tasks.release import (
    Approval,
    BootKind,
    BootRecord,
    Event,
    Hold,
    Latency,
    Redeploy,
    Request,
    StagePointer,
    Wake,
    now,
)
from tasks.settings import SETTINGS_FILE, Settings
from tasks.store import Store
from tests.test_release import a_build, a_release, seen

CASES = 250 if settings.default and settings.default.max_examples < 100 else 5000
"""Of each of the four kinds: 1,000 cases with the short profile, 20,000 with the long one."""
fuzzed = settings(
    max_examples=CASES,
    phases=(Phase.reuse, Phase.generate),  # to make a failing case smaller took more than five minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

EXIT_CODES = {0, 1, 2, 3, 4, 10}
CHANGES = ("hold lift", "rebuild", "report", "start", "stop")
"""What changes the store when it succeeds."""
RELEASE, EARLIER, RUN = a_release(), a_release(alias="earlier"), "5f0c9a4e-0000-4000-8000-000000000001"
COMMANDS = (
    "status", "status --json", "history", "history --json --last 2", "hold lift --by ada", "rebuild b1", "rebuild b2",
    f"report {RELEASE.id}", "report", f"cost {RELEASE.id}", f"approve {RUN} --by ada", "stop", "start",
    "explain x",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that has one of each kind of document, on hold; nothing in it serves."""
    store = Store(tmp_path_factory.mktemp("fuzz") / "store")
    for release in (RELEASE, EARLIER):
        store.save_release(release)
        store.record(seen("a").model_copy(update={"release": release.id}))
    store.save_build(a_build())
    hold = Hold(reason="it was bad", by="ada")
    store.save_pointer(StagePointer(stage="staging", release=RELEASE.id, since=now()))
    store.save_pointer(
        StagePointer(stage="production", release=RELEASE.id, since=now(), retained=(EARLIER.id,), hold=hold)
    )
    store.open_redeploy(Redeploy(release=RELEASE.id, generation="0a1b2c3d", by="ada", reason="another"))
    dossier = store.dossier(RELEASE, ("a",))
    store.save_approval(
        Approval(
            release=RELEASE.id, dossier=dossier.digest, expected=None, request="r", decision="approve", approver="ada"
        )
    )
    store.save_request(
        Request(
            run=RUN, name="upgrade to b11434", api_url="http://127.0.0.1:9/api", link="", suspended=True, tag="b11434",
            release=RELEASE.id, dossier=dossier.digest, required=("a",), expected=EARLIER.id, asked_at=now(),
            expires_at=now(),
        )
    )  # fmt: skip
    for number in range(3):
        store.log(Event(kind="promoted", release=RELEASE.id, stage="production", summary=f"event {number}"))
    store.add_latency(
        RELEASE.id,
        Latency(stage="production", kind=BootKind.COLD, health_s=1, after_idle_s=1, warm_s=1, tokens_per_s=9),
    )
    save_deployment(store.root, "production", Deployment(release=RELEASE.id, port=65000))
    save_wake(store.root, Wake(stage="production", release=RELEASE.id, status=200, first_byte_s=1, probe=False))
    boot = BootRecord(stage="production", release=RELEASE.id, kind=BootKind.COLD)
    (store.root / "run/production/boots").mkdir()
    (store.root / "run/production/boots/20260101T000000.json").write_text(boot.model_dump_json())
    (store.root / "locks").mkdir()
    for name in ("production", "release"):
        (store.root / f"locks/{name}.lock").write_text('{"pid": 1, "flow_run": "x"}')
    return store.root


@contextmanager
def machine(folder: Path, env: Mapping[str, str]) -> Iterator[None]:
    """This process stands in a folder, with this environment and little else."""
    was = Path.cwd()
    (folder / "bin").mkdir(exist_ok=True)
    usual = {
        "PATH": str(folder / "bin"), "HOME": str(folder), "USER": "ada",
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
    }  # fmt: skip
    os.chdir(folder)
    try:
        with patch.dict(os.environ, {**usual, **env}, clear=True):
            yield
    finally:
        os.chdir(was)


def run(words: list[str]) -> tuple[int, str]:
    """(exit code, what it printed) of a command in this process. Raises what would end in a traceback."""
    out, err, nothing = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(3))
    code: object = 0
    with (
        patch.object(sys, "argv", ["llama-release", *words]),
        patch.object(sys, "stdin", nothing),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    said = ""
    for stream in (out, err):
        stream.flush()
        stream.seek(0)
        said += stream.read()
    assert code in EXIT_CODES, said
    assert "Traceback" not in said
    assert isinstance(code, int)
    return code, said


def content(root: Path) -> dict[str, bytes]:
    """Every document of a store: path -> content. What holds a lock says so in its file."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "locks"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def check(words: list[str], store: Path) -> None:
    """The command ends in words, and has changed nothing unless it is meant to and was done."""
    before = content(store)
    code, said = run(words)
    if code:
        assert said.strip()
    if code or not " ".join(words).startswith(CHANGES):
        assert content(store) == before


def fresh(whole: Path, folder: Path) -> Path:
    """A copy of the whole store."""
    store = folder / ".llama-release"
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(whole, store)
    (folder / SETTINGS_FILE).unlink(missing_ok=True)
    return store


# -- what stands in a file --------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(10**30, 10**40), st.floats(), st.text(max_size=8),
    st.sampled_from(["", "0", "../../x", "\x00", "\x1b[2J", "[/]", "9" * 5000, "2026-13-01T00:00:00Z"]),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
rubbish = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 100_000, b"{}" * 2, b"\0"]),
    values.map(lambda value: json.dumps(value).encode()),
)


@st.composite
def damages(draw: st.DrawFn) -> Any:
    """What becomes of a document: a function of its content."""
    how = draw(st.sampled_from(["rubbish", "cut", "changed", "byte", "gone", "folder", "loop"]))
    junk, value, at = draw(rubbish), draw(values), draw(st.floats(0, 1, exclude_max=True))

    def damage(path: Path) -> None:
        was = path.read_bytes()
        if how == "cut":
            path.write_bytes(was[: int(at * len(was))])
        elif how == "byte":
            path.write_bytes(was[: int(at * len(was))] + junk[:1] + was[int(at * len(was)) + 1 :])
        elif how == "changed":
            try:
                fields = json.loads(was)
            except ValueError:
                fields = {"x": 1}
            fields[list(fields)[int(at * len(fields))]] = value
            path.write_text(json.dumps(fields))
        elif how == "rubbish":
            path.write_bytes(junk)
        else:
            path.unlink()
            if how == "folder":
                path.mkdir()
            elif how == "loop":
                path.symlink_to(path.name)

    return damage


@fuzzed
@given(st.data())
def test_a_damaged_store_is_told_and_left_as_it_is(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    store = fresh(whole, tmp_path)
    documents = sorted(path for path in store.rglob("*") if path.is_file())
    for path in data.draw(st.lists(st.sampled_from(documents), min_size=1, max_size=2, unique=True)):
        data.draw(damages())(path)
    with machine(tmp_path, {}):
        check(data.draw(st.sampled_from(COMMANDS)).split(), store)


# -- settings ---------------------------------------------------------------------------------------------------------


def names(model: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every setting and section."""
    for name, field in model.model_fields.items():
        yield (*before, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from names(field.annotation, (*before, name))


SETTINGS = sorted(names(Settings))
tomls = st.one_of(
    st.sampled_from([
        "", "=", "0", "-1", "1e400", "nan", "''", "[]", "{}", "[[]]", "'x'", '"\\u0000"', "1979-05-27", "true",
        "'/dev/null'", "'/dev/null/x'", "'~nobody-here/x'", "'../x'", '"\\ud800"', "[" * 5000, "'" + "x" * 5000 + "'",
    ]),
    st.text(max_size=6),
    scalars.map(json.dumps),
)  # fmt: skip


@fuzzed
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.tuples(st.sampled_from(SETTINGS), tomls), min_size=1, max_size=3).map(
            lambda lines: "\n".join(f"{'.'.join(name)} = {value}" for name, value in lines).encode("utf-8", "replace")
        ),
    ),
    st.sampled_from(COMMANDS),
)
def test_a_settings_file_of_anything_is_told(whole: Path, tmp_path: Path, text: bytes, words: str) -> None:
    store = fresh(whole, tmp_path)
    with machine(tmp_path, {}):
        Path(SETTINGS_FILE).write_bytes(text)
        check(words.split(), store)


no_null = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
broken = st.sampled_from([os.fsdecode(b"\xff\xfe"), "{", "[1", '{"a": }', "~x/y", "1e999", "/dev/null", "/dev/null/x"])


@fuzzed
@given(
    st.dictionaries(
        st.one_of(
            st.sampled_from(["LLAMA_RELEASE_" + "__".join(name).upper() for name in SETTINGS]),
            st.sampled_from(["HOME", "XDG_CACHE_HOME", "USER", "TMPDIR", "PATH", "COLUMNS", "LLAMA_RELEASE_API_KEY"]),
            st.sampled_from(["PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILES_PATH", "GITHUB_TOKEN"]),
        ),
        st.one_of(no_null, broken, tomls.filter(lambda text: "\0" not in text), values.map(json.dumps)),
        min_size=1,
        max_size=3,
    ).map(lambda env: {name: re.sub("[\ud800-\udbff]", "", value) for name, value in env.items()}),
    st.sampled_from(COMMANDS),
)
def test_an_environment_of_anything_is_told(whole: Path, tmp_path: Path, env: dict[str, str], words: str) -> None:
    store = fresh(whole, tmp_path)
    with machine(tmp_path, env):
        check(words.split(), store)


# -- arguments --------------------------------------------------------------------------------------------------------

options = st.sampled_from([
    "--to", "--by", "--reason", "--json", "--last", "--again", "--approver", "--help", "--reject", "--note", "--code",
    "--release", "--platform", "--port", "--", "-", "-1", "--argv", "--context", "edit", "refresh", "retire", "lift",
])  # fmt: skip
verbs = st.sampled_from([
    "status", "history", "rebuild", "report", "cost", "approve", "stop", "start", "explain", "hold",
])  # fmt: skip
words_of = st.lists(st.one_of(options, no_null, broken, st.sampled_from(COMMANDS)), max_size=5)


@fuzzed
@given(verbs, words_of)
def test_arguments_of_anything_are_told(whole: Path, tmp_path: Path, verb: str, words: list[str]) -> None:
    store = fresh(whole, tmp_path)
    with machine(tmp_path, {}):
        check([verb, *words], store)
