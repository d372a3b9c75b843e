"""Renders a chat template in a process of its own: it is a stranger's program, which may never end or want all memory.

Run as a file, with jinja2 alone; from standard input to standard output, both JSON. See `rendered` in reading.py.
"""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress
from typing import Any

from jinja2 import Environment, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MOST_BYTES = 1 << 30
_MOST_CHARACTERS = 1 << 20  # of a prompt: a hundred times the longest that is compared


def environment() -> Environment:
    """Jinja2 as chat templates expect it (transformers' `_compile_jinja_template`)."""

    def refuse(said: str) -> None:
        raise TemplateError(said)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    made.globals["raise_exception"] = refuse
    return made


def render(template: str, values: dict[str, Any]) -> tuple[str, str]:
    """(prompt, '') of a template, or ('', why there is none): whatever a stranger's program raises is its own."""
    try:
        prompt = environment().from_string(template).render(**values)
    except Exception as error:
        return "", f"{type(error).__name__}: {error}"
    return (prompt, "") if len(prompt) <= _MOST_CHARACTERS else ("", f"a prompt of {len(prompt)} characters")


def main() -> None:
    """Answer `{"template": ..., "values": [...], "cpu_s": ...}` with what `render` says of each."""
    asked = json.load(sys.stdin)
    for limit, most in ((resource.RLIMIT_AS, _MOST_BYTES), (resource.RLIMIT_CPU, asked["cpu_s"])):
        with suppress(ValueError, OSError):  # macOS refuses some; the time limit of whoever waits holds there
            resource.setrlimit(limit, (most, most))
    json.dump([render(asked["template"], values) for values in asked["values"]], sys.stdout)


if __name__ == "__main__":
    main()
