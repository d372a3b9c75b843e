"""How far an answer may be from the reference: a server that speaks the wire and answers what a test wants."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from modal_app.selftest import BOUND, CASE, MEAN, MODEL, Case, Result, Run, selftest

pytestmark = pytest.mark.wire

TOKENS = 400
SERVER = """\
#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def say(self, body):
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.say({{"status": "ok"}})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        top = [{{"id": n, "logprob": value}} for n, value in enumerate({answer})]
        self.say({{"completion_probabilities": [{{"top_logprobs": top}}]}})

    def log_message(self, *words):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def tried(tmp_path: Path, answer: str) -> Result:
    """What the self-test says of a server that gives these log-probabilities where all should be -5."""
    case = Case(
        types=("F16",), tokens=(3, 4), alone=(1,), grown=(2,), logprobs=dict.fromkeys((1, 2), (-5.0,) * TOKENS),
        model_sha256="",
    )  # fmt: skip
    (tmp_path / CASE).write_text(case.to_json())
    (tmp_path / MODEL).write_bytes(b"")
    server = tmp_path / "llama-server"
    server.write_text(SERVER.format(python=sys.executable, answer=answer))
    server.chmod(0o755)
    return selftest(server, tmp_path, (Run("as it is", ()),), os.environ)


@pytest.mark.parametrize(
    "answer",
    [
        f"[-5.0] * {TOKENS}",
        f"[-5.0 - {0.9 * MEAN}] * {TOKENS}",
        f"[-5.0 + {0.9 * BOUND}] + [-5.0] * {TOKENS - 1}",
    ],
    ids=["the reference", "a little everywhere", "more in one place"],
)
def test_what_rounding_does_is_right(tmp_path: Path, answer: str) -> None:
    found = tried(tmp_path, answer)
    assert found.ok, found


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (f"[-5.0 + {1.1 * BOUND}] + [-5.0] * {TOKENS - 1}", "off by 0.55"),
        (f"[-5.0 - {1.1 * MEAN}] * {TOKENS}", r"\(0\.1[67] on average\)"),
        (f"[float('nan')] * {TOKENS}", "off by nan"),
        (f"[-5.0] * {TOKENS - 1}", f"it names {TOKENS - 1} of {TOKENS} tokens"),
        (f"[None] * {TOKENS}", "no answer as it is"),
    ],
    ids=["one place", "everywhere", "no number", "too few", "null"],
)
def test_what_rounding_does_not_do_is_wrong(tmp_path: Path, answer: str, says: str) -> None:
    found = tried(tmp_path, answer)
    assert not found.ok
    assert re.search(says, found.summary), found.summary
