"""What answers are made of: the keys that each function of the server puts into JSON, and the metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tasks.upstream.treediff.facts import Fact, Files, Kind

ANSWERING = ("tools/server/server*.cpp", "tools/server/server*.h")
_KEY = re.compile(r"""\{\s*"([A-Za-z_][\w.]*)"\s*,|\["([A-Za-z_][\w.]*)"\]\s*(?:=(?!=)|\.push_back)""")
_METRIC = re.compile(r"""\{\s*"name"\s*,\s*"(\w+)"\s*\}\s*,\s*\{\s*"help"\s*,""")
_INWARD = re.compile(r"(?:^|_)(?:convert|parse)_|_to_chatcmpl$|_params_parse$")
"""Functions that make one request of another: their JSON is no answer."""


def facts(files: Files) -> Iterable[Fact]:
    """Each key under the function that writes it: another answer may have one of the same name."""
    for code in files.code(*ANSWERING):
        measuring = {code.inner(m.start()) for m in _METRIC.finditer(code.bare)}
        for m in _KEY.finditer(code.bare):
            outer, function = code.function(m.start()), code.inner(m.start())
            if function and function not in measuring and not _INWARD.search(outer.rpartition("::")[2]):
                yield Fact(Kind.RESPONSE_FIELD, f"{m[1] or m[2]} of {function}", "", code.at(m.start()))
        for m in _METRIC.finditer(code.bare):
            yield Fact(Kind.METRIC, f"llamacpp:{m[1]}", "", code.at(m.start()))
