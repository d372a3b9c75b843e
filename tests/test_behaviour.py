"""What makes a verification stale, and what doesn't."""

from __future__ import annotations

import io
import re
import shutil
import tokenize
from pathlib import Path

import pytest

from tasks import contracts
from tasks.behaviour import digest_of_code
from tasks.release import digest_of

PLAIN = '''
LIMIT = 3
"""How many."""

class Judge:
    """Who judges."""

    def judge(self, seen: list[int], *, most: int = LIMIT) -> str:
        """What it is."""
        return f"{len(seen):<{most}} of {most!r}" if len(seen) < most else "none"

    def nothing(self) -> None:
        """Of course."""
'''
TIDIED = '''# a comment
LIMIT = 3
"""How many, and why."""


class Judge:
    """Who judges, as `docs` says."""

    def judge(
        self, seen: list[int], *, most: int = LIMIT,
    ) -> str:
        """What it is; raises nothing."""
        return (f'{len(seen):<{most}} of {most!r}' if len(seen) < most else 'none')  # short

    def nothing(self) -> None:
        """Nothing."""
'''
CHANGES = [
    ("LIMIT = 3", "LIMIT = 4"), ("3", "3.0"), (" < ", " <= "), ("!r", ""), (":<", ":>"), ('"none"', 'b"none"'),
    ("*, ", ""), ("none", "None"), ("list[int]", "list[str]"), ("def judge", "async def judge"),
]  # fmt: skip


def digest(folder: Path, text: str) -> str:
    folder.mkdir()
    (folder / "judge.py").write_text(text)
    (folder / "judge.jinja").write_text("{{ seen }}")
    return digest_of_code(folder)


def test_to_tidy_code_makes_nothing_stale(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert digest(tmp_path / "a", PLAIN) != digest(tmp_path / "b/a", TIDIED.replace("LIMIT = 3", "LIMIT = 5"))
    (tmp_path / "c").mkdir()
    assert digest(tmp_path / "c/a", TIDIED) == digest_of_code(tmp_path / "a")


@pytest.mark.parametrize(("one", "other"), CHANGES)
def test_what_code_does_is_in_its_digest(tmp_path: Path, one: str, other: str) -> None:
    (tmp_path / "then").mkdir()
    assert digest(tmp_path / "a", PLAIN) != digest(tmp_path / "then/a", PLAIN.replace(one, other, 1))


def test_a_template_a_name_and_a_module_more_are_in_it(tmp_path: Path) -> None:
    seen = {digest(tmp_path / "a", PLAIN)}
    for n, (name, text) in enumerate([("judge.jinja", "{{ seen }} "), ("more.py", ""), ("more.jinja", "")]):
        (tmp_path / str(n)).mkdir()
        digest(tmp_path / str(n) / "a", PLAIN)
        shutil.copytree(tmp_path / str(n) / "a", tmp_path / f"then-{n}" / "a")
        (tmp_path / f"then-{n}" / "a" / name).write_text(text)
        seen.add(digest_of_code(tmp_path / f"then-{n}" / "a"))
    assert len(seen) == 4


def test_it_is_the_same_on_every_python(tmp_path: Path) -> None:
    """Computed by Python 3.11, 3.12 and 3.13, which parse some f-strings each in its way: one store, many Pythons."""
    assert digest(tmp_path / "a", PLAIN) == "89602ee2598c"


def test_the_contracts_and_the_client_that_asks_are_what_a_verification_rests_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(contracts.__file__).parents[1]
    for name in ("contracts", "endpoint"):
        shutil.copytree(source / name, tmp_path / name)
    monkeypatch.setattr(contracts, "__file__", str(tmp_path / "contracts/__init__.py"))
    assert contracts.basis() != digest_of([])
    uncommented = tmp_path / "tidied"
    shutil.copytree(tmp_path / "contracts", uncommented / "contracts")
    shutil.copytree(tmp_path / "endpoint", uncommented / "endpoint")
    comments = 0
    for path in uncommented.rglob("*.py"):
        lines = path.read_text().splitlines(keepends=True)
        for token in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
            if token.type == tokenize.COMMENT:
                line, start = token.start
                lines[line - 1] = lines[line - 1][:start].rstrip() + "\n"
                comments += 1
        path.write_text("".join(lines))
    assert comments > 10
    assert digest_of_code(uncommented / "contracts", uncommented / "endpoint") == contracts.basis()
    asks = uncommented / "endpoint/client.py"
    asks.write_text(re.sub(r"timeout", "time_out", asks.read_text(), count=1))
    shutil.copytree(uncommented, tmp_path / "changed")
    assert digest_of_code(tmp_path / "changed/contracts", tmp_path / "changed/endpoint") != contracts.basis()
