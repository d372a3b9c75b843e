"""`llama-release import` as a user calls it, and the commands of docs/adopt.md as they stand there."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from docs.generate import REPOSITORY
from tasks.settings import SETTINGS_FILE
from tests.benchmarks.start import SCRIPT, clean
from tests.docs.examples import examples

LINE = ("llama-server", "-m", "m.gguf", "-c", "4096", "-np", "2", "--api-key", "sk-of-a-command", "--n-cpu-moe", "3")


def called(words: Sequence[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as a user's shell runs it in a folder."""
    return subprocess.run(
        [SCRIPT, *words], cwd=folder, env={**clean(folder), **environment}, capture_output=True, text=True, timeout=120
    )


def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path) -> None:
    page = REPOSITORY / "docs/adopt.md"
    lines = [
        line.removeprefix("$ ")
        for example in examples("console")
        if example.page == page and not example.marked("not run")
        for line in example.text.splitlines()
    ]
    assert [shlex.split(line)[1] for line in lines] == ["import", "plan", "import"]
    taken, planned, again = (called(shlex.split(line)[1:], tmp_path) for line in lines)
    assert (taken.returncode, planned.returncode, again.returncode) == (0, 0, 0), taken.stderr + again.stderr
    assert f"wrote {SETTINGS_FILE}" in taken.stdout
    assert shlex.split(lines[2])[3:] == shlex.split(planned.stdout), "the page shows what `plan --argv` prints"
    assert "nothing is changed" in again.stdout


def test_import_of_what_plan_prints_changes_nothing_variables_too(tmp_path: Path) -> None:
    assert called(("import", "--", *LINE), tmp_path, CUDA_VISIBLE_DEVICES="1", LLAMA_ARG_THREADS="2").returncode == 0
    text = (tmp_path / SETTINGS_FILE).read_text()
    assert "[server.env]" in text and "CUDA_VISIBLE_DEVICES" in text
    words = shlex.split(called(("plan", "--argv"), tmp_path).stdout)
    again = called(("import", "--", *words), tmp_path)
    assert again.returncode == 0 and "nothing is changed" in again.stdout, again.stderr
    assert (tmp_path / SETTINGS_FILE).read_text() == text


def test_json_has_all_of_it_and_no_secret(tmp_path: Path) -> None:
    done = called(("import", "--json", "--", *LINE), tmp_path)
    told = json.loads(done.stdout)
    assert told["written"] is True and told["server"]["slots"] == 2 and told["export"] == ["LLAMA_RELEASE_API_KEY"]
    assert told["from"]["server.slots"] == "from -np 2" and told["missing"] == [str(tmp_path / "m.gguf")]
    assert "sk-of-a-command" not in done.stdout + done.stderr + (tmp_path / SETTINGS_FILE).read_text()


def test_what_is_refused_exits_2_with_one_message_and_writes_nothing(tmp_path: Path) -> None:
    done = called(("import", "--", *LINE, "--no-such", "--draft-maxx", "3"), tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "`--no-such`" in done.stderr and "`--draft-maxx 3`" in done.stderr and "sk-of" not in done.stderr
    assert not (tmp_path / SETTINGS_FILE).exists()


def test_a_file_that_would_change_needs_force(tmp_path: Path) -> None:
    assert called(("import", "--", *LINE), tmp_path).returncode == 0
    other = ("import", "--", "llama-server", "-m", "other.gguf")
    refused = called(other, tmp_path)
    assert refused.returncode == 2 and "-model = " in refused.stderr and "+model = " in refused.stderr
    assert called(("import", "--force", *other[1:]), tmp_path).returncode == 0
    assert "other.gguf" in (tmp_path / SETTINGS_FILE).read_text()
