"""How many set-ups of tests/adoption/cases.toml are taken over as they are labelled: words, variables, paths, address,
secrets, and what is refused."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tasks.adoption.adopt import adopt, argv
from tasks.adoption.read import read_source
from tasks.adoption.settle import Settled, alike
from tasks.flags.table import known
from tasks.flags.words import read
from tasks.release import BadInput
from tests.adoption.cases import Case, cases

_ADDRESS = ("--host", "--port")


def judge(case: Case, folder: Path) -> str:
    """What is wrong with how a set-up, whose files lie in this folder, is taken over; '' when nothing is."""
    case = case.lay_out(folder)
    try:
        launch = read_source(case.source, case.environment, folder)
        adopted = adopt(launch, known(), folder)
    except BadInput as error:
        return "" if case.refused and case.refused in str(error) else f"refused: {error}"
    if case.refused:
        return "it is not refused"
    settled = adopted.settled
    found = [*_lost(case, settled), *_misplaced(case, settled)]
    if tuple(each.variable for each in launch.secrets) != case.secrets:
        found.append(f"secrets {[each.variable for each in launch.secrets]}")
    keys = [each.value.get_secret_value() for each in launch.secrets]
    said = f"{adopted.text} {adopted.pairs} {settled.notes}"
    if any(re.search(rf"(?<!\w){re.escape(key)}(?!\w)", said) for key in keys):
        found.append("a secret is written")
    return "; ".join(found)


def _lost(case: Case, settled: Settled) -> Iterator[str]:
    """What the labels say to llama-server and the settings do not."""
    variables = {name: value for name, value in case.variables.items() if name.startswith("LLAMA_ARG_")}
    asked = read(case.words or (), known(), variables).effective
    said = {each.main: each.value for each in read(argv(settled), known()).effective}
    for each in asked:
        if each.main in _ADDRESS:
            continue
        value = case.paths.get(each.value, each.value)
        if not alike(said.get(each.main, ""), value) and not said.get(each.main, "").endswith(value.lstrip("/")):
            yield f"{each.said} is {said.get(each.main)}"
    env = settled.server.get("env", {})
    for name, value in case.variables.items():
        if not name.startswith("LLAMA_ARG_") and env.get(name) != value:
            yield f"{name}={value} is {env.get(name)}"


def _misplaced(case: Case, settled: Settled) -> Iterator[str]:
    local = settled.section("local")
    address = f"{local['host']}:{local['production_port']}"
    if case.address and address != case.address:
        yield f"it answers at {address}, not {case.address}"
    for path, place in case.paths.items():
        if str(settled.launch.outside(path)) != place:
            yield f"{path} is {settled.launch.outside(path)}, not {place}"


def main() -> Iterator[str]:
    """Lines of the result."""
    right = 0
    for case in cases():
        with tempfile.TemporaryDirectory(prefix="setups-") as folder:
            wrong = judge(case, Path(folder))
        right += not wrong
        if wrong:
            yield f"{case.id}: {wrong}"
    yield f"{right} of {len(cases())} set-ups are taken over as they are labelled"
