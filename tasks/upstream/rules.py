"""How upstream writes of changes that break something: rules over the words and files of one change.

Titles are `component : verb ...`. The rules know upstream's ways of writing, never a change by its name; how well they
find what broke is measured on labelled changes (`python -m tests.benchmarks notes`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Area(StrEnum):
    """Parts of upstream that matter to whoever serves a model."""

    SERVER = "server"
    CHAT = "chat templates and parsers"
    TOKENIZER = "tokenizer"
    GGML = "ggml core"
    CUDA = "CUDA"
    GGUF = "GGUF format"
    GEMMA = "Gemma"
    SAMPLING = "sampling"
    BUILD = "build system"


@dataclass(frozen=True)
class Rule:
    """Words by which upstream says that something is not as it was."""

    means: str
    words: re.Pattern[str]
    of: re.Pattern[str]
    """What the title must be of for the words to count."""
    body: bool = False
    """Whether the words count in what the author says below the title, too."""
    only_ours: bool = False
    """Whether they count only for the architecture that we serve."""


def _words(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE)


ANY = _words("")

OUTSIDE = _words(r"(?<![\w-])--[a-z]", r"(?<!\w)/v1/", r"(?-i:\bLLAMA_[A-Z])")
"""A flag, a route or a variable by its very name: who sees these words in a title is outside."""

SURFACE = _words(
    r"^[^:]*\b(server|common|args?|chat|spec\w*|sampl\w+|preset|router|download|hf|mtmd|llama|fit)\b[^:]*:",
    r"\bserver\b",
    r"\b(flag|argument|env|endpoint|option|api[ -]key)s?\b",
    OUTSIDE.pattern,
)
"""Titles of what operators and clients see."""

SERVER = _words(r"^[^:]*\b(server|common|args?|preset|router)\b[^:]*:")

_NAMED = r"(args?|arguments?|flags?|options?|params?|parameters?|env\w*|variables?|fields?|endpoints?|routes?|apis?)"
_NAMING = r"(typos?|names?|naming|prefix|spelling|consisten\w+)"

RULES = (
    Rule(
        "says itself that it breaks something",
        _words(
            r"\bBREAKING\b", r"breaking change", r"\bAPI change", r"(not |in)(backwards?[- ])?compatible\b(?! with)"
        ),
        SURFACE,
        body=True,
    ),
    Rule(
        "takes something away",
        _words(r"\b(remov(e|es|ed|ing)|drop(s|ped|ping)?|delet(e|es|ed|ing)|retir(e|es|ed)|rm|no longer)\b"),
        SURFACE,
    ),
    Rule(
        "takes something old away, or a name that others may use",
        _words(
            r"\b(remov\w+|drop(s|ped|ping)?|replac\w+|renam\w+) [^.\n]{0,40}"
            rf"\b({_NAMED}|legacy|deprecated|obsolete)\b"
        ),
        SURFACE,
        body=True,
    ),
    Rule("gives something another name", _words(r"\brenam(e|es|ed|ing)\b", r"\S (-+>|=+>|→) \S"), SURFACE),
    Rule(
        "mends a name: the old one may not be taken any more",
        _words(rf"\b{_NAMING}\b.*\b{_NAMED}\b", rf"\b{_NAMED}\b.*\b{_NAMING}\b"),
        SURFACE,
    ),
    Rule(
        "changes a default",
        _words(
            r"\bby default\b",
            r"\b(set|chang\w+|flip|switch|raise|lower|bump|update|new|increase|reduce)\b.*\bdefaults?\b",
            r"\bdefaults?\b.* to\b",
        ),
        ANY,
    ),
    Rule(
        "says that a default is another one",
        _words(
            r"\b(now|is|are) (enabled|disabled|on|off) by default",
            r"\b(chang|set|switch|flip)\w* (the |its )*default\b",
            r"\bdefault (value )?(is now|changed|changes|from .* to)\b",
        ),
        SERVER,
        body=True,
    ),
    Rule(
        "turns an option of the build on or off",
        _words(r"\b(flip|switch|turn|enable|disable)\b.*(?-i:\b[A-Z]+_[A-Z_]+\b)"),
        ANY,
    ),
    Rule(
        "takes a build option away or gives it another name",
        _words(r"\b(remove|drop|rename|deprecate|replace|rm)\b.*(?-i:\b(GGML|LLAMA)_[A-Z_]{3,})"),
        ANY,
    ),
    Rule(
        "asks for more than before, or refuses what it took",
        _words(r"\b(requires?|enforces?|rejects?|forbid|disallow|refuse|restrict|deny|opt[- ]in|strict\w*|must)\b"),
        ANY,
    ),
    Rule("is about to take something away", _words(r"\bdeprecat\w+"), SURFACE),
    Rule("takes back what was there", _words(r"\brevert(s|ed)?\b"), ANY),
    Rule(
        "changes statuses, errors or who may ask",
        _words(r"\b([45]\d\d|status codes?|error codes?|api[ -]keys?|auth\w*|cors|public endpoints?|validat\w+)\b"),
        SERVER,
    ),
    Rule(
        "replaces one way by another",
        _words(
            r"\b(replaces?|unify|unified|migrate|switch|chang(e|es|ed)|convert|move|merge|rework|refactor)\b.*"
            rf"\b({_NAMED}|formats?|responses?|CLI|requests?)\b"
        ),
        SURFACE,
    ),
    Rule(
        "does otherwise than before, asked or not",
        _words(
            r":\s*(\(.*?\)\s*)?(use|make|set|save|clear|enable|disable|always|never|force|switch|change|move|replace|"
            r"respect|limit|restrict|cap|clamp|ignore|stop|skip|return|update|unify|merge|bump|increase|raise|lower|"
            r"reduce|extend|adjust|only)\b"
        ),
        SERVER,
    ),
    Rule(
        "another parser or template for our model",
        _words(r"\b(parser|template|tokeni[sz]er)s?\b"),
        ANY,
        only_ours=True,
    ),
)

DECLARED = {
    "common/arg.cpp": "flags are declared there",
    "tools/server/server-schema.cpp": "request fields are declared there",
    "tools/server/server-http.cpp": "statuses and the API key are decided there",
}
"""File -> what a change of it may change for others, unless the title says that it only adds."""

ADDS = _words(r":\s*(\(.*?\)\s*)?(add|support|allow|implement)\b", r"^\W*(add|support)\b")

INSIDE = _words(
    r"\b(unused|unneeded|redundant|duplicate[sd]?|unnecessary|dead code|superfluous|comments?|includes?|headers?)\b",
    r"\b(warnings?|asserts?|tests?|docs?|readme|scripts?|ggml_op\w*|copies|codecvt|log lines?|workaround)\b",
    r"\b(functions?|debug)\b",
)
"""Titles that take away or rename what nobody outside sees."""

OTHER_BACKEND = _words(
    r"^\W*(ggml[- ])?(vulkan|metal|opencl|hexagon|web-?gpu|sycl|cann|zendnn|hip|rocm|musa|virtgpu|openvino|kleidiai)\b"
)
"""Titles of backends that no recipe can build."""

CUDA_BACKEND = _words(r"^\W*(ggml[- ])?cuda\b")
"""Titles of a backend that a recipe may leave out."""

BESIDE = _words(
    r"^\W*(completion|perplexity|imatrix|(llama-)?quant(ize)?|(llama-)?bench|convert\w*|(llama-)?cli|llama-\w+-cli|tts|"
    r"rpc|ui|webui|web ui|ci|docs?|tests?|scripts?|examples?|gguf-py|console|vendors?|nix|docker|release)\b[^:]*[:\])]"
)
"""Titles of other programs, and of what lies beside the programs."""

AREAS: dict[Area, tuple[re.Pattern[str], tuple[str, ...]]] = {
    Area.SERVER: (
        _words(r"^[^:]*\bserver\b", r"llama-server", r"\bslots?\b", r"endpoint", r"/v1/", r"\bargs?\b ?:"),
        ("tools/server/*", "common/arg.*"),
    ),
    Area.CHAT: (
        _words(r"\bchat\b", r"jinja|template|parser|reasoning|thinking|tool[- ]?call"),
        ("common/chat*", "common/jinja/**/*", "common/parsers/*", "common/*peg*", "models/templates/*"),
    ),
    Area.TOKENIZER: (_words(r"vocab|tokeni[sz]|unicode|\b(bpe|eog|bos|eos)\b"), ("src/llama-vocab*", "src/unicode*")),
    Area.GGML: (
        _words(r"^\W*(ggml|cpu|graph|sched)\b"),
        ("ggml/src/*", "ggml/include/*", "ggml/src/ggml-cpu/**/*"),
    ),
    Area.CUDA: (_words(r"cuda|\bnccl\b|nvfp4|blackwell|hopper"), ("ggml/src/ggml-cuda/**/*",)),
    Area.GGUF: (
        _words(r"gguf|model-loader|mmap|direct ?io"),
        ("ggml/src/gguf*", "src/llama-model-loader*", "gguf-py/**/*"),
    ),
    Area.GEMMA: (_words(r"gemma"), ("src/models/gemma*", "common/**/gemma*", "models/templates/*gemma*")),
    Area.SAMPLING: (
        _words(
            r"sampl|grammar|penalt|logit|logprob|temperature|mirostat",
            r"\b(top|min)[-_ ]?[knp]\b|\b(dry|xtc)\b",
        ),
        ("src/llama-sampl*", "src/llama-grammar*", "common/sampling*", "common/reasoning-budget*"),
    ),
    Area.BUILD: (
        _words(r"cmake|\bbuild\b|makefile|(?-i:\b(GGML|LLAMA)_[A-Z]{3,})"),
        ("**/CMakeLists.txt", "cmake/*", "**/*.cmake"),
    ),
}
"""Area -> (words in a title, files)."""
