"""Our own families of items: seeded generators with exactly checkable answers, one file a family."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tasks.evals.families import (
    arithmetic,
    images,
    instructions,
    languages,
    long_context,
    structured,
    thinking,
    tool_turns,
    tools,
)
from tasks.evals.families.family import HARDEST, Family
from tasks.evals.model import Item
from tasks.release import BadInput

_TRIES = 200


def families(names: Sequence[str], longest: int, with_images: bool) -> list[Family]:
    """The families of these names (all when there are none); without images unless they can be read.

    `longest`: tokens of the longest prompt. Raises BadInput for a name that is none.
    """
    every = {
        family.name: family
        for family in (
            instructions.FAMILY, arithmetic.FAMILY, structured.FAMILY, tools.FAMILY, tool_turns.FAMILY,
            long_context.family(longest), languages.FAMILY, images.FAMILY, thinking.FAMILY,
        )
    }  # fmt: skip
    if unknown := [name for name in names if name not in every]:
        raise BadInput(
            f"there is no eval family {unknown[0]}",
            evidence=f"known: {', '.join(every)}",
            todo="correct evals.families",
        )
    return [f for f in every.values() if f.name in (names or every) and (with_images or f.name != images.FAMILY.name)]


def generate(chosen: Sequence[Family], seed: int, each: int, hardest: int = HARDEST) -> list[Item]:
    """`each` items of every template of these families, those of a template all different.

    A pure function: the same arguments give the same items everywhere, and fewer of each are the beginning of more.
    Levels are taken in turn, each template beginning with another one. A template that has no more different ones
    of a level to give ends early.
    """
    found: list[Item] = []
    for family in chosen:
        for place, (name, template) in enumerate(family.templates.items()):
            seen: set[str] = set()
            for number in range(each):
                level = (place + number) % (hardest + 1)
                draw = random.Random(f"{seed}/{family.name}/{name}/{number}")
                for _ in range(_TRIES):
                    ask = template(draw, level)
                    if (text := ask.model_dump_json()) not in seen:
                        seen.add(text)
                        made = ask.model_dump() | {"family": family.name, "template": f"{family.name}/{name}"}
                        found.append(Item(id=f"{family.name}/{name}/{number}", **made))
                        break
    return found
