"""One command-line option of llama-server, as a build's `--help`, its README or its source tells it."""

from __future__ import annotations

import re

from pydantic import Field as Described

from tasks.release import Model

_HELP_COLUMN = 40  # common/arg.cpp, common_arg::to_string: where the description begins
_HELP_GAP = 3


class Flag(Model):
    """One command-line option."""

    names: tuple[str, ...] = Described(description="every spelling, in upstream's order")
    value: str = Described(default="", description="the value's placeholder; empty for a switch")
    env: str = Described(default="", description="the environment variable that sets it")
    default: str = ""
    text: str = Described(default="", description="what upstream says of it, without default and variable")

    @property
    def main(self) -> str:
        """The first long name."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])

    @property
    def variables(self) -> tuple[str, ...]:
        """Its variable, and the LLAMA_ARG_NO_ form that one with a negative name has (common_arg::get_env)."""
        negative = [name.startswith("--no-") for name in self.names]
        both = self.env.startswith("LLAMA_ARG_") and any(negative) and not all(negative)
        return tuple(filter(None, (self.env, self.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_") if both else "")))

    @property
    def removed(self) -> bool:
        """Whether it is only listed to say that it is gone (upstream since b9105: `--draft`)."""
        return "has been removed" in self.text

    @property
    def takes(self) -> int:
        """How many values follow its name: 0, 1 or 2 (common_arg has a value_hint and a value_hint_2)."""
        return len(re.sub(r"<[^>]*>", "V", self.value).split())

    @property
    def negative(self) -> frozenset[str]:
        """Its names that say no, of one that has both: `--no-jinja`, and the short one listed with it (`-nocb`)."""
        named = [name.startswith("--no-") for name in self.names]
        if all(named) or not any(named):
            return frozenset()
        from_here = named.index(True)
        while from_here and not self.names[from_here - 1].startswith("--"):
            from_here -= 1
        return frozenset(self.names[from_here:])

    def twin(self, name: str) -> str:
        """The first long name that says the same as this one: the positive or the negative."""
        same = [each for each in self.names if (each in self.negative) is (name in self.negative)]
        return next((each for each in same if each.startswith("--")), same[0])

    @property
    def choices(self) -> frozenset[str]:
        """The values that it takes, where upstream lists them; empty where it does not."""
        if re.fullmatch(r"[\[{][\w|,-]+[\]}]", self.value):
            return frozenset(re.split(r"[|,]", self.value[1:-1]))
        if "," in self.value and re.fullmatch(r"[a-z][a-z0-9-]*(,[a-z][a-z0-9-]*)+", self.value):
            return frozenset(self.value.split(","))
        if found := re.search(r"allowed values: ([\w.-]+(?:, [\w.-]+)*)", self.text):
            return frozenset(found[1].split(", "))
        return frozenset(re.findall(r"(?:^| )- ([a-z][a-z+]*): ", self.text)) if self.value == "MODE" else frozenset()

    @property
    def several(self) -> bool:
        """Whether one value may be several of the choices, with commas between them."""
        return self.value.startswith("none,")


def flags_of_help(text: str) -> tuple[Flag, ...]:
    """The flags that `--help` lists."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("-") and not line.startswith("---"):
            gap = line[_HELP_COLUMN - _HELP_GAP : _HELP_COLUMN]
            cut = len(line) if gap.strip() else _HELP_COLUMN
            found.append([line[:cut], line[cut:]])
        elif line.startswith("-----"):
            continue
        elif found:
            found[-1].append(line)
    return tuple(read_flag(head, " ".join(rest)) for head, *rest in found)


def flags_of_readme(text: str) -> tuple[Flag, ...]:
    """The flags in the tables between HELP_START and HELP_END."""
    tables = text.partition("HELP_START")[2].partition("HELP_END")[0].replace(r"\|", "\0")
    rows = re.findall(r"^\| `(-[^|]*)` \| ([^|]*) \|$", tables, re.MULTILINE)
    return tuple(read_flag(*(cell.replace("\0", "|").replace("<br/>", " ") for cell in row)) for row in rows)


def read_flag(head: str, text: str) -> Flag:
    """The flag of an option's names with its placeholder, and of what is said of it."""
    names = re.match(r"(?:--?[\w.-]+,\s*)*--?[\w.-]+", head)
    assert names, head
    said = " ".join(text.split())
    env = re.search(r" ?\(env: (\w+)\)", said)
    said = said.replace(env[0], "") if env else said
    default = re.search(r"default: (\"[^\"]*\"|'[^']*'|[^,()]+)", said)
    return Flag(
        names=tuple(re.split(r",\s*", names[0])),
        value=head[names.end() :].strip(),
        env=env[1] if env else "",
        default=default[1].strip() if default else "",
        text=said.replace(default[0], "default") if default else said,
    )
