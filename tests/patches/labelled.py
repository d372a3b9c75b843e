"""Labelled series on real trees (cases.toml): each case made into a patch file as its kind of user would have it."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tasks.patches import Placed
from tasks.patches.trees import scratch_index
from tasks.sources import Sources

CASES = Path(__file__).parent / "cases.toml"


@dataclass(frozen=True)
class Case:
    """One patch, where it was exported, where it is brought, and what is true of it there."""

    id: str
    exported: int
    target: int
    accept: tuple[str, ...]
    why: str
    edit: tuple[dict[str, str], ...]
    style: str = "mail"
    names: str = ""
    lands: dict[str, str] = field(default_factory=dict)

    def fault(self, placed: Placed, sources: Sources) -> str:
        """What is wrong about an outcome; empty when nothing is."""
        result = placed.result
        if result.status not in self.accept:
            return f"{result.status}, not {' or '.join(self.accept)}"
        if not re.search(self.names, f"{result.evidence} {result.detail}"):
            return f"it does not say {self.names}"
        if self.lands and result.status.built_with:
            lines = sources.read(placed.tree, self.lands["path"]).split("\n")
            at = [n for n, line in enumerate(lines) if line.strip() == self.lands["line"].strip()]
            if len(at) != 1 or self.lands["above"].strip() not in lines[at[0] - 1]:
                return f"it lands at {[n + 1 for n in at]}: {lines[at[0] - 1] if at else 'nowhere'}"
        return ""


def cases() -> list[Case]:
    """All of them, in the order of the file."""
    return [_case(row) for row in tomllib.loads(CASES.read_text(encoding="utf-8"))["case"]]


def _case(row: dict[str, Any]) -> Case:
    return Case(**{**row, "accept": tuple(row["accept"]), "edit": tuple(row["edit"])})


def file_of(case: Case, sources: Sources, base: str) -> bytes:
    """The patch file of a case whose patch was made on the tree `base`."""
    trees = [base]
    steps = [[edit] for edit in case.edit] if case.style == "two-mails" else [list(case.edit)]
    for step in steps:
        trees.append(_edited(sources, trees[-1], step))
    heads = ["From: A Person <person@example.invalid>\nDate: Sat, 1 Jan 2000 00:00:00 +0000\n"
             f"Subject: [PATCH] {case.id}\n\nWhy: {case.why}.\nExported-on: b{case.exported}\n---\n\n"]  # fmt: skip
    if case.style in ("plain", "no-prefix", "unified"):
        heads = [""]
    start = f"From {'0' * 40} Mon Sep 17 00:00:00 2001\n"
    texts = []
    for old, new in pairwise(trees):
        said = sources.git("diff-tree", "-r", "-p", "--binary", *_options(case), old, new).stdout
        texts.append((start if heads[0] else "") + heads[0] + said + ("-- \n2.39.5\n\n" if heads[0] else ""))
    text = "".join(texts)
    if case.style == "unified":
        text = re.sub(r"^(?:diff|index) .*\n", "", text, flags=re.MULTILINE)
        text = re.sub(r"^((?:---|\+\+\+) .*)$", r"\1\t2026-11-01 10:00:00.000000000 +0100", text, flags=re.MULTILINE)
    return (text.replace("\n", "\r\n") if case.style == "crlf" else text).encode()


def _options(case: Case) -> tuple[str, ...]:
    short = case.style in ("plain", "no-prefix", "unified")
    prefix = ("--no-prefix",) if case.style == "no-prefix" else ()
    return (*prefix, "-M" if case.style == "plain" else "--no-renames", "--abbrev=7" if short else "--full-index")


def _edited(sources: Sources, tree: str, edits: list[dict[str, str]]) -> str:
    with scratch_index(sources) as index:
        sources.git("read-tree", tree, index=index)
        for edit in edits:
            _stage(sources, index, edit)
        return sources.git("write-tree", index=index).stdout.strip()


def _stage(sources: Sources, index: Path, edit: dict[str, str]) -> None:
    path = edit["path"]
    known = sources.git("ls-files", "-s", "--", path, index=index).stdout.split()
    mode, blob = known[:2] if known else ("100644", "")
    if "create" in edit:
        raw = index.with_name("raw")
        raw.write_bytes(bytes.fromhex(edit["create"]))
        blob = sources.git("hash-object", "-w", raw).stdout.strip()
    elif "old" in edit:
        text = sources.git("cat-file", "blob", blob).stdout
        assert text.count(edit["old"]) == 1, (path, edit["old"], text.count(edit["old"]))
        blob = sources.git("hash-object", "-w", "--stdin", stdin=text.replace(edit["old"], edit["new"])).stdout.strip()
    gone = "delete" in edit or "rename" in edit
    rows = [f"0 {'0' * 40}\t{path}" if gone else f"{edit.get('mode', mode)} {blob}\t{path}"]
    rows += [f"{mode} {blob}\t{edit['rename']}"] if "rename" in edit else []
    sources.git("update-index", "--index-info", index=index, stdin="".join(f"{row}\n" for row in rows))
