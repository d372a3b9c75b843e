"""What upstream's changes could break for us: each one judged by the words and files that it names, and why."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from tasks import contracts, endpoint, preflight
from tasks.platforms.local.compile import definitions
from tasks.release import Change, Model, Problem, ReleaseNotes
from tasks.report import markdown_table
from tasks.settings import Settings
from tasks.sources import fits

SHOWN = 15
"""How many of the changes that break things elsewhere a page lists; those that touch us are all listed."""


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


class Risk(StrEnum):
    """What a change could do, the worst last."""

    NONE = "none"
    """Nothing in its words or files speaks of what is served, or it is of a backend or a program that we don't use."""
    TOUCHES_US = "touches us"
    """It names something that we use, and says nothing of a break."""
    BREAKS = "breaks"
    """Its words speak of a break, in nothing that we are known to use."""
    BREAKS_US = "breaks us"
    """Its words speak of a break, and it names something that we use."""

    @property
    def rank(self) -> int:
        return list(Risk).index(self)


class Assessed(Model):
    """One upstream change, and what it could break."""

    build: int
    pull: int | None
    title: str
    areas: tuple[Area, ...]
    risk: Risk
    why: tuple[str, ...] = Field(description="the words or files that decided, each with what they mean")
    touches: tuple[str, ...] = Field(description="the settings, promises, patches and the like that it names")


class Assessment(Model):
    """What is known of all changes between two builds."""

    low: int
    high: int
    until: int = Field(description="the last build that the notes speak of; less than `high`: the rest is unknown")
    changes: tuple[Assessed, ...] = Field(default=(), description="the riskiest first, then the newest")
    problem: str = Field(default="", description="why the notes could not be read; nothing is known then")

    def of(self, *risks: Risk) -> list[Assessed]:
        return [change for change in self.changes if change.risk in risks]

    @property
    def summary(self) -> str:
        """One line for a person."""
        if self.problem:
            return f"release notes not read: {self.problem}"
        ours = len(self.of(Risk.BREAKS_US, Risk.TOUCHES_US))
        told = (
            f"{len(self.changes)} changes read, {ours} touch what we use, {len(self.of(Risk.BREAKS_US))} may break it"
        )
        return told + (f"; the notes end at b{self.until}" if self.until < self.high else "")


@dataclass(frozen=True)
class Rule:
    """Words by which upstream says that something is not as it was."""

    means: str
    pattern: re.Pattern[str]
    of: re.Pattern[str]
    """What the title must speak of (its component) for the words to count."""
    body: bool = False
    """Whether the words count in what the author says below the title, too."""
    only_ours: bool = False
    """Whether they count only for the architecture that we serve."""


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_ANY = _words("")
_OUTSIDE = _words(r"(?<![\w-])--[a-z]|(?<!\w)/v1/|(?-i:\bLLAMA_[A-Z])")  # flags, routes and variables by their names
_SURFACE = _words(
    r"^[^:]*\b(server|common|args?|chat|spec\w*|sampl\w+|preset|router|download|hf|mtmd|llama|fit)\b[^:]*:"
    rf"|\bserver\b|{_OUTSIDE.pattern}|\b(flag|argument|env|endpoint|option|api[ -]key)s?\b"
)
_SERVER = _words(r"^[^:]*\b(server|common|args?|preset|router)\b[^:]*:")
_NAMED = r"(args?|arguments?|flags?|options?|params?|parameters?|env\w*|variables?|fields?|endpoints?|routes?|apis?)"

RULES = (
    Rule(
        "says itself that it breaks something",
        _words(r"\bBREAKING\b|breaking change|\bAPI change|(not |in)(backwards?[- ])?compatible\b(?! with)"),
        _SURFACE,
        body=True,
    ),
    Rule(
        "takes something away",
        _words(r"\b(remov(e|es|ed|ing)|drop(s|ped|ping)?|delet(e|es|ed|ing)|retir(e|es|ed)|rm|no longer)\b"),
        _SURFACE,
    ),
    Rule(
        "takes something old away",
        _words(r"\b(remove[sd]?|drop(s|ped)?) (the |all |support for )*(legacy|deprecated|old|obsolete)\b"),
        _SURFACE,
        body=True,
    ),
    Rule("gives something another name", _words(r"\brenam(e|es|ed|ing)\b|\w (-+>|=+>|→) \S"), _SURFACE),
    Rule(
        "mends a name: the old one may not be taken any more",
        _words(rf"\b(typos?|names?|naming|prefix|spelling|consisten\w+)\b.*\b{_NAMED}\b|\b{_NAMED}\b.*"
               r"\b(typos?|names?|naming|prefix|spelling|consisten\w+)\b"),
        _SURFACE,
    ),
    Rule(
        "changes a default",
        _words(r"\bby default\b|\b(set|change|flip|switch|raise|lower|bump|update|new|increase|reduce)\b.*\bdefaults?\b"
               r"|\bdefaults?\b.* to\b"),
        _ANY,
    ),
    Rule(
        "says that a default is another one",
        _words(r"\b(now|is|are) (enabled|disabled|on|off) by default|\b(chang|set|switch|flip)\w* (the |its )*default\b"
               r"|\bdefault (value )?(is now|changed|changes|from .* to)\b"),
        _SERVER,
        body=True,
    ),
    Rule("turns an option of the build on or off", _words(r"\b(flip|switch|turn|enable|disable)\b.*(?-i:\b[A-Z]+_[A-Z_]+\b)"), _ANY),
    Rule(
        "takes a build option away or gives it another name",
        _words(r"\b(remove|drop|rename|deprecate|replace|rm)\b.*(?-i:\b(GGML|LLAMA)_[A-Z_]{3,})"),
        _ANY,
    ),
    Rule(
        "asks for more than before, or refuses what it took",
        _words(r"\b(requires?|enforces?|rejects?|forbid|disallow|refuse|restrict|deny|opt[- ]in|strict\w*|must)\b"),
        _ANY,
    ),
    Rule("is about to take something away", _words(r"\bdeprecat\w+"), _SURFACE),
    Rule("takes back what was there", _words(r"\brevert(s|ed)?\b"), _ANY),
    Rule(
        "changes statuses, errors or who may ask",
        _words(r"\b([45]\d\d|status codes?|error codes?|api[ -]keys?|auth\w*|cors|public endpoints?|validat\w+)\b"),
        _SERVER,
    ),
    Rule(
        "replaces one way by another",
        _words(r"\b(replaces?|unify|unified|migrate|switch|chang(e|es|ed)|convert|move|merge|rework|refactor)\b.*"
               rf"\b({_NAMED}|formats?|responses?|CLI|requests?)\b"),
        _SURFACE,
    ),
    Rule(
        "the server does by itself what it did not, or otherwise",
        _words(r":\s*(\(.*?\)\s*)?(use|make|set|save|clear|enable|disable|always|never|force|switch|change|move|replace|"
               r"respect|limit|restrict|cap|clamp|ignore|stop|skip|return|update|unify|merge|bump|increase|raise|lower|"
               r"reduce|extend|adjust|only)\b"),
        _SERVER,
    ),
    Rule(
        "another parser or template for our model",
        _words(r"\b(parser|template|tokeni[sz]er)s?\b"),
        _ANY,
        only_ours=True,
    ),
)  # fmt: skip
"""Each is how upstream's titles are written (`component : verb ...`), not a list of changes that were seen."""

INSIDE = _words(
    r"\b(unused|unneeded|redundant|duplicate[sd]?|unnecessary|dead code|superfluous|comments?|includes?|headers?|warnings?|"
    r"asserts?|tests?|docs?|readme|scripts?|ggml_op\w*|copies|codecvt|log lines?|workaround|functions?|debug)\b"
)
"""Of titles that take away or rename what nobody outside sees."""

ELSEWHERE = _words(
    r"^\W*(ggml[- ])?(vulkan|metal|opencl|hexagon|web-?gpu|wegpu|sycl|cann|zendnn|hip|rocm|musa|virtgpu|openvino|rpc|kleidiai|"
    r"ui|webui|web ui|ci|docs?|tests?|scripts?|examples?|benches|completion|perplexity|imatrix|(llama-)?quant(ize)?|"
    r"(llama-)?bench|convert\w*|gguf-py|(llama-)?cli|llama-\w+-cli|tts|console|vendors?|devops|nix|docker|release)\b[^:]*[:\])]"
)
"""Components that are in no llama-server which a recipe can build, or that are no part of a running server."""

AREAS: dict[Area, tuple[str, tuple[str, ...]]] = {
    Area.SERVER: (r"^[^:]*\bserver\b|\bllama-server\b|\bslots?\b|endpoint|/v1/|\bargs?\b ?:", ("tools/server/*", "common/arg.*")),
    Area.CHAT: (
        r"\bchat\b|jinja|template|parser|reasoning|thinking|tool[- ]?call",
        ("common/chat*", "common/jinja/**/*", "common/parsers/*", "common/*peg*", "models/templates/*"),
    ),
    Area.TOKENIZER: (r"vocab|tokeni[sz]|unicode|\b(bpe|eog|bos|eos)\b", ("src/llama-vocab*", "src/unicode*")),
    Area.GGML: (r"^\W*(ggml|cpu|graph|sched)\b", ("ggml/src/*", "ggml/include/*", "ggml/src/ggml-cpu/**/*")),
    Area.CUDA: (r"cuda|\bnccl\b|nvfp4|blackwell|hopper", ("ggml/src/ggml-cuda/**/*",)),
    Area.GGUF: (r"gguf|model-loader|mmap|direct ?io", ("ggml/src/gguf*", "src/llama-model-loader*", "gguf-py/**/*")),
    Area.GEMMA: (r"gemma", ("src/models/gemma*", "common/**/gemma*", "models/templates/*gemma*")),
    Area.SAMPLING: (
        r"sampl|grammar|penalt|logit|logprob|temperature|\b(top|min)[-_ ]?[knp]\b|mirostat|\b(dry|xtc)\b",
        ("src/llama-sampl*", "src/llama-grammar*", "common/sampling*", "common/reasoning-budget*"),
    ),
    Area.BUILD: (r"cmake|\bbuild\b|makefile|(?-i:\b(GGML|LLAMA)_[A-Z]{3,})", ("**/CMakeLists.txt", "cmake/*", "**/*.cmake")),
}  # fmt: skip
"""Area -> (words in a title, files)."""


@dataclass(frozen=True)
class Ours:
    """What we use of upstream, and the words or files by which a change would name it."""

    words: dict[str, re.Pattern[str]] = field(default_factory=dict)
    """What it is -> how a text names it."""
    files: dict[str, str] = field(default_factory=dict)
    """Path in upstream's tree -> what of ours changes it."""
    architecture: str = ""
    """Of the model, as its GGUF says; '' when it cannot be known."""

    def named(self, text: str) -> list[str]:
        return [what for what, pattern in self.words.items() if pattern.search(text)]

    def holding(self, paths: Iterable[str]) -> list[str]:
        return [f"{self.files[path]} ({path})" for path in paths if path in self.files]


def ours(settings: Settings) -> Ours:
    """What these settings use: flags, build options, patched code, promised routes and fields, the architecture.

    All of it is read from the code that uses it. Raises BadInput when there is no patch series.
    """
    from tasks.patches.series import read_series  # tasks.patches needs tasks.upstream

    words: dict[str, re.Pattern[str]] = {}
    files: dict[str, str] = {}
    for want in preflight.wants(settings.server):
        for flag in {word for spelling in want.spellings for word in spelling if word.startswith("--")}:
            words[f"setting {want.setting} ({flag})"] = _flag(flag)
    for option in definitions(settings.recipe):
        words[f"build option {option}"] = re.compile(rf"\b{option}\b")
    for patch in read_series(settings.patches):
        for diff in patch.files:
            files[diff.path] = f"patch {patch.name}"
            for hunk in diff.hunks:
                if function := re.search(r"(\w+)\(", hunk.heading):
                    words[f"patch {patch.name} ({function[1]})"] = re.compile(rf"\b{function[1]}\b")
    for name, subjects in sorted(promised().items()):
        kind = "route" if name.startswith("/") else "field"
        words[f"contracts {', '.join(sorted(subjects))} ({kind} {name})"] = _name(name)
    architecture = architecture_of(settings.server.model)
    if parts := re.findall(r"[a-z]+|\d+", architecture):
        words[f"model architecture {architecture}"] = re.compile(rf"\b{'[ _-]?'.join(parts)}(?!\d)", re.IGNORECASE)
    return Ours(words, files, architecture)


def _flag(flag: str) -> re.Pattern[str]:
    # a title may say `flash attention` or `n_gpu_layers` for a flag of two words and more
    spoken = "[ _-]".join(map(re.escape, flag.strip("-").split("-")))
    bare = rf"|\b{spoken}\b" if flag.strip("-").count("-") else ""
    return re.compile(rf"(?<![\w-])--{re.escape(flag.strip('-'))}(?![\w-]){bare}", re.IGNORECASE)


def _name(name: str) -> re.Pattern[str]:
    if name.startswith("/"):
        return re.compile(rf"(?<![\w./]){re.escape(name)}(?![\w/])")
    return re.compile(rf"\b{name}\b" if "_" in name else rf"[`\"']{name}[`\"']")


def promised() -> dict[str, set[str]]:
    """Route, or name of a field of a request, -> the modules of the contracts that ask for it, read from their code."""
    found: dict[str, set[str]] = {}
    modules = {subject.__name__.rpartition(".")[2]: subject.__file__ for subject in contracts.SUBJECTS}
    for subject, path in {**modules, "endpoint": endpoint.__file__}.items():
        for node in ast.walk(ast.parse(Path(str(path)).read_text(encoding="utf-8"))):
            for name in _asked(node):
                found.setdefault(name, set()).add(subject)
    return found


def _asked(node: ast.AST) -> Iterable[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"(/\w+)+", node.value):
        yield node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("chat", "stream"):
        yield from (keyword.arg for keyword in node.keywords if keyword.arg)
    elif isinstance(node, ast.Dict):
        keys = (key.value for key in node.keys if isinstance(key, ast.Constant))
        yield from (key for key in keys if isinstance(key, str) and key.isidentifier())


def architecture_of(model: Path | None) -> str:
    """`general.architecture` of a GGUF; '' when the file is not here or does not begin with it, as writers have it."""
    if model is None or not model.is_file():
        return ""
    with model.open("rb") as file:
        head = file.read(4096)
    found = re.search(rb"general\.architecture\x08\0\0\0(.)\0{7}", head, re.DOTALL)
    return head[found.end() : found.end() + found[1][0]].decode() if found else ""


def assess(change: Change, used: Ours) -> Assessed:
    """What one change could break, judged by its title, and by its body and files where upstream tells them."""
    text = f"{change.title}\n{change.body}"
    areas = tuple(area for area in Area if _in(area, change))
    record = Assessed(
        build=change.build, pull=change.pull, title=change.title, areas=areas, risk=Risk.NONE, why=(), touches=()
    )
    if (elsewhere := ELSEWHERE.search(change.title)) and not _OUTSIDE.search(change.title):
        return record.model_copy(update={"why": (f"`{elsewhere[0].strip(' :')}` is no part of our server",)})
    touches = used.named(change.title) + used.holding(change.files)
    if why := tuple(_said(change, used)):
        touches = list(dict.fromkeys(touches + used.named(text)))
        risk = Risk.BREAKS_US if touches else Risk.BREAKS
    else:
        risk = Risk.TOUCHES_US if touches else Risk.NONE
    return record.model_copy(update={"risk": risk, "why": why, "touches": tuple(touches)})


def _in(area: Area, change: Change) -> bool:
    words, globs = AREAS[area]
    return bool(_words(words).search(change.title)) or any(fits(p, glob) for p in change.files for glob in globs)


def _said(change: Change, used: Ours) -> Iterable[str]:
    """Each rule's words as they stand in the change, with what they mean."""
    inside = INSIDE.search(change.title) and not _OUTSIDE.search(change.title)
    architecture = used.words.get(f"model architecture {used.architecture}")
    for rule in RULES:
        if not rule.of.search(change.title):
            continue
        if rule.only_ours and not (architecture and architecture.search(change.title)):
            continue
        found = None if inside else rule.pattern.search(change.title)
        if not found and rule.body:
            found = rule.pattern.search(change.body)
        if found:
            yield f"{rule.means}: `{found[0].strip(' :')}`"
