"""What a build can be told and needs: options and their defaults, packages, GPU architectures, language standards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tasks.upstream.treediff.facts import Fact, Files, Kind

LISTS = (
    "CMakeLists.txt", "ggml/CMakeLists.txt", "ggml/src/CMakeLists.txt", "ggml/src/ggml-*/CMakeLists.txt",
    "src/CMakeLists.txt", "common/CMakeLists.txt", "tools/server/CMakeLists.txt", "tools/ui/CMakeLists.txt",
    "tools/mtmd/CMakeLists.txt",
)  # fmt: skip
ALTERED = "altered"
"""The default of an option that its packager altered (`# Modified by build script`): upstream's is not known."""

_COMMENT = re.compile(r"#(?!.*[Mm]odified by).*$", re.MULTILINE)
_OPTION = re.compile(
    r'^\s*(?:option|llama_option\w*)\s*\(\s*(\w+)\s+"([^"]*)"\s*([^\s)]*)\s*\)(?P<note>.*)$', re.MULTILINE
)
_CACHED = re.compile(r'^\s*set\s*\(\s*([A-Z]\w+)\s+("[^"]*"|[^\s")]+)\s+CACHE\s+\w+\s+"([^"]*)"', re.MULTILINE)
_PACKAGE = re.compile(r"\bfind_(?:package|library)\s*\(\s*(\w+)([^)]*)\)")
_STANDARD = re.compile(
    r"\bset\s*\(\s*(CMAKE_(?:C|CXX|CUDA)_STANDARD)\s+(\S+?)\s*\)|\b(cmake_minimum_required)\s*\(\s*VERSION\s+([\d.]+)"
    r"|\btarget_compile_features\s*\(\s*(\w+)\s+\w+\s+(c\w*_std_\d+)"
)
_ARCHITECTURES = re.compile(r"\bCMAKE_CUDA_ARCHITECTURES\s+([^()\n$]*?\d[^()\n$]*)\)")


def facts(files: Files) -> Iterable[Fact]:
    """From upstream's own CMakeLists.txt."""
    for path, text in files.fitting(*LISTS):
        yield from _facts(path, _COMMENT.sub("", text))


def _facts(path: str, text: str) -> Iterator[Fact]:
    def at(place: int) -> str:
        return f"{path}:{text.count(chr(10), 0, place) + 1}"

    for m in _OPTION.finditer(text):
        value = ALTERED if "odified by" in m["note"] else m[3] or "OFF"
        yield Fact(Kind.OPTION, m[1], value, at(m.start(1)), text=m[2])
    for m in _CACHED.finditer(text):
        yield Fact(Kind.OPTION, m[1], m[2].strip('"') or "empty", at(m.start(1)), text=m[3])
    for m in _PACKAGE.finditer(text):
        needed = "required" if "REQUIRED" in m[2] else "taken where it is found"
        yield Fact(Kind.TOOLCHAIN, f"package {m[1]} of {path.removesuffix('/CMakeLists.txt')}", needed, at(m.start()))
    for m in _STANDARD.finditer(text):
        name, value = (each for each in m.groups() if each)
        yield Fact(Kind.TOOLCHAIN, f"{name} of {path}", value, at(m.start()))
    found = [(m.start(), " ".join(m[1].split())) for m in _ARCHITECTURES.finditer(text)]
    if found:
        values = sorted({word for _, words in found for word in words.split() if word[0].isdigit() or word == "native"})
        yield Fact(
            Kind.TOOLCHAIN, "CMAKE_CUDA_ARCHITECTURES", " ".join(values), at(found[0][0]), text="default GPU code"
        )
