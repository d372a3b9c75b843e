"""What models can be: architectures (the enum, their tensors, their graph builder), GGUF keys, quant types, tokenizers.

An architecture is never looked for as a word: `llama` is one, and the project's own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tasks.upstream.treediff.cpp import Code
from tasks.upstream.treediff.facts import Fact, Files, Kind, digest

NAMES = "src/llama-arch.cpp"
BUILDERS = "src/models/*.cpp"
_ARCHITECTURE = re.compile(r'\{\s*(LLM_ARCH_\w+)\s*,\s*"([^"]+)"\s*\}')
_KEY = re.compile(r'\{\s*LLM_KV_\w+\s*,\s*"([^"]+)"\s*\}')
_TENSORS = re.compile(r"\bcase\s+(LLM_ARCH_\w+)\s*:")
_TENSOR = re.compile(r"\bLLM_TENSOR_\w+")
_TYPE = re.compile(r"\b((?:GGML_TYPE|LLAMA_FTYPE)_(?!COUNT\b)\w+)\s*=\s*(\d+)")
_PRE = re.compile(r'\btokenizer_pre\s*==\s*"([^"]+)"')
_PRE_TYPE = re.compile(r"\b(?:pre_type|type_pre)\s*=\s*(LLAMA_VOCAB_PRE_TYPE_\w+)")


def facts(files: Files) -> Iterable[Fact]:
    """Everything that decides whether a GGUF is read, and how."""
    architectures: dict[str, str] = {}
    for code in files.code(NAMES):
        for m in _ARCHITECTURE.finditer(code.bare):
            architectures[m[1]] = m[2]
            yield Fact(Kind.ARCHITECTURE, m[2], "", code.at(m.start()))
        for m in _KEY.finditer(code.bare):
            yield Fact(Kind.GGUF_KEY, m[1].replace("%s", "*"), "", code.at(m.start()))
        for enum, tensors, at in _tensors(code):
            if enum in architectures:
                yield Fact(Kind.ARCHITECTURE, f"tensors of {architectures[enum]}", " ".join(tensors), at)
    yield from _builders(files)
    for code in files.code("ggml/include/ggml.h", "include/llama.h"):
        for m in _TYPE.finditer(code.bare):
            yield Fact(Kind.QUANT, m[1], m[2], code.at(m.start()))
    for code in files.code("src/llama-vocab.cpp"):
        yield from _pre_tokenizers(code)


def _tensors(code: Code) -> Iterator[tuple[str, list[str], str]]:
    """(architecture, its tensors, where) by the switch of llm_get_tensor_names (upstream, from b7300 or so)."""
    waiting: list[tuple[str, str]] = []
    for m in re.finditer(rf"{_TENSORS.pattern}|\breturn\s*\{{", code.bare):
        if m[1]:
            waiting.append((m[1], code.at(m.start())))
            continue
        found = _TENSOR.findall(code.bare, m.end(), code.closing(m.end() - 1))
        if found:
            yield from ((enum, sorted(set(found)), at) for enum, at in waiting)
        waiting = []


def _builders(files: Files) -> Iterator[Fact]:
    """Each graph builder under the name of its file, which is its architecture's without dashes."""
    for path, text in files.fitting(BUILDERS):
        architecture = path.rpartition("/")[2].removesuffix(".cpp")
        yield Fact(Kind.ARCHITECTURE, f"graph builder {architecture}", digest(text), f"{path}:1")


def _pre_tokenizers(code: Code) -> Iterator[Fact]:
    """Each name that a GGUF may give, with the rule that it means."""
    waiting: list[tuple[str, str]] = []
    for m in re.finditer(rf"{_PRE.pattern}|{_PRE_TYPE.pattern}", code.bare):
        if m[1]:
            waiting.append((m[1], code.at(m.start())))
            continue
        yield from (Fact(Kind.PRE_TOKENIZER, name, m[2], at) for name, at in waiting)
        waiting = []
