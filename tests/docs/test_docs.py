"""The pages say what is true: links, generated parts, examples, and every place in the code that they name."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer

from docs.generate import REPOSITORY, made, pages, sections
from flows.__main__ import app
from tasks.contracts.promises import CONTRACTS
from tasks.process import run
from tasks.settings import Settings, load
from tests.benchmarks.__main__ import SECTIONS
from tests.docs.examples import Example, examples, names

BUILD_S = 120
CHECKED = {"python", "toml", "console", "text"}
PLACE = re.compile(r"(?P<file>[\w./-]*\w\.(?:py|jinja|md|toml|txt|yml|patch))(?::{1,2}(?P<symbol>[\w.]+))?")


class Loads(HTMLParser):
    """What a page loads by itself when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "image") or (tag == "link" and given.get("rel") != "canonical"):
            self.found += [value for key in ("src", "href", "xlink:href") if (value := given.get(key))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "properdocs", "build", "--strict", "--site-dir", str(folder)]
    run(argv, cwd=REPOSITORY, timeout_s=BUILD_S)
    return folder


def test_the_site_is_built_and_no_link_of_it_is_broken(site: Path) -> None:
    assert (site / "index.html").exists()


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    elsewhere = []
    for file in site.rglob("*"):
        if file.suffix in (".html", ".svg"):
            loads = Loads()
            loads.feed(file.read_text(encoding="utf-8"))
            elsewhere += [f"{file.name}: {url}" for url in loads.found if re.match(r"(https?:)?//", url)]
        if file.suffix in (".css", ".svg"):
            elsewhere += re.findall(r"url\([\"']?(?:https?:)?//[^)]*|@import[^;]*//[^;]*", file.read_text("utf-8"))
    assert not elsewhere


def test_a_readme_link_into_the_repository_leads_to_a_file() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", readme)
    inside = [link.partition("#")[0] for pair in links for link in pair if link and not link.startswith("https:")]
    assert inside and [link for link in inside if not (REPOSITORY / link).exists()] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_generated_parts_are_what_the_code_says_now(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    text = page.read_text(encoding="utf-8")
    assert made(text) == text, "run `make docs`"


def test_every_setting_is_described() -> None:
    silent = [
        f"{section}.{name}"
        for section, model in sections().items()
        for name, field in model.model_fields.items()
        if name not in sections() and not field.description
    ]
    assert not silent


def test_the_readme_counts_the_promises_right() -> None:
    assert f"{len(CONTRACTS)} promises" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


# -- names -------------------------------------------------------------------------------------------


def resolve(place: str) -> str:
    """What is wrong with a place such as `tasks/release.py:Build.identity`; '' when it is there."""
    found = PLACE.fullmatch(place)
    assert found, place
    file, symbol = REPOSITORY / found["file"], found["symbol"]
    if not file.exists():
        return f"there is no {found['file']}"
    if symbol and found["file"].startswith("tests/"):
        return "" if re.search(rf"^ *(?:def|class) {symbol}\b", file.read_text(), re.M) else f"no {symbol} in {file}"
    if symbol:
        module = found["file"].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        thing: Any = importlib.import_module(module)
        for part in symbol.split("."):
            thing = getattr(thing, part, None) or getattr(thing, "model_fields", {}).get(part)
            if thing is None:
                return f"no {symbol} in {found['file']}"
    return ""


def setting(name: str) -> bool:
    section, _, field = name.partition(".")
    return field in sections()[section].model_fields


def test_every_place_promise_and_setting_that_a_page_names_is_there() -> None:
    wrong = []
    written = {example.marked("file") for example in examples("python")}
    for page, name in names():
        where = f"{page.name}: {name}"
        if name in written:
            continue
        if PLACE.fullmatch(name) and "/" in name and not name.startswith(("/", "~")):
            told = resolve(name)
            if told and name.split("/")[0] in {path.name for path in REPOSITORY.iterdir()}:
                wrong.append(f"{where}: {told}")
        elif name.startswith("llama-release ") and _unknown(name):
            wrong.append(f"{where}: no such command")
        elif name.startswith("contracts.") and name not in CONTRACTS and not _subject(name):
            wrong.append(f"{where}: no such promise")
        elif re.fullmatch(r"[a-z]+\.[a-z_]+", name) and name.split(".")[0] in sections() and not setting(name):
            wrong.append(f"{where}: no such setting")
    assert not wrong


def _unknown(line: str) -> bool:
    try:
        found(line.split()[1:])
    except KeyError:
        return True
    return False


def _subject(name: str) -> bool:
    return any(known.startswith(f"{name.removesuffix('*').removesuffix('.')}.") for known in CONTRACTS)


def lessons() -> dict[str, list[str]]:
    """Lesson -> the places where it is enforced."""
    text = (REPOSITORY / "docs" / "lessons.md").read_text(encoding="utf-8")
    parts = re.split(r"^### (\d+\. .+)$", text, flags=re.M)[1:]
    enforced = (re.search(r"^Enforced by: (.+)$", body, re.M) for body in parts[1::2])
    return {
        title: re.findall(r"`([^`]+)`", found[1]) if found else []
        for title, found in zip(parts[::2], enforced, strict=True)
    }


def test_there_are_twenty_lessons() -> None:
    assert [title.partition(".")[0] for title in lessons()] == [str(n) for n in range(1, 21)]


@pytest.mark.parametrize("places", lessons().values(), ids=[*lessons()])
def test_a_lesson_is_enforced_where_its_page_says(places: list[str]) -> None:
    assert places
    for place in places:
        assert place in CONTRACTS or (PLACE.fullmatch(place) and not resolve(place)), place


# -- examples ----------------------------------------------------------------------------------------


def test_every_example_is_of_a_kind_that_is_checked_or_says_why_not() -> None:
    assert [e.name for e in examples() if e.kind not in CHECKED and not e.marked("not run")] == []


@pytest.mark.parametrize("example", examples("toml"), ids=lambda example: example.name)
def test_settings_in_a_page_are_settings(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = example.text.replace("<40 hex digits>", "0" * 40).replace("<64 hex digits>", "0" * 64)
    monkeypatch.chdir(tmp_path)
    Path("llama-release.toml").write_text(text, encoding="utf-8")
    given, plain = set(tomllib.loads(text)), Settings.model_construct()
    assert given and load().model_dump(include=given) != plain.model_dump(include=given)


def commands() -> list[tuple[str, str]]:
    """(where, command line) of every console example that is not marked as not run."""
    return [
        (example.name, line[2:].partition("  #")[0])
        for example in examples("console")
        if not example.marked("not run")
        for line in example.text.splitlines()
        if line.startswith("$ ")
    ]


@pytest.mark.parametrize(("where", "line"), commands())
def test_a_command_in_a_page_is_one_that_there_is(where: str, line: str) -> None:
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    while words and words[0] in ("nice", "sudo"):
        words = words[1:]
    match words:
        case []:
            pass
        case ["make", *targets]:
            known = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.M))
            assert set(targets) <= known
        case ["llama-release", *arguments]:
            command, options = found(arguments)
            command.make_context(command.name, options)
        case ["python", "-m", "tests.benchmarks", *sections_named]:
            assert set(sections_named) <= set(SECTIONS)
        case ["python", "-m", module, *_]:
            assert (REPOSITORY / f"{module.replace('.', '/')}.py").exists()
        case ["export" | "source" | "cd" | "git" | "openssl", *_]:
            pass
        case [script, *_]:
            assert (REPOSITORY / script).exists(), f"{where}: mark it `not run: why`"


def found(words: list[str]) -> tuple[Any, list[str]]:
    """(the command that these words name, what is left of them). Raises KeyError for a command that there is not."""
    command: Any = typer.main.get_command(app)
    while getattr(command, "commands", None) and words and re.match(r"[a-z]", words[0]):
        command, words = command.commands[words[0]], words[1:]
    return command, words
