"""Kills the Python process that loads it between two lines of its own: a tool for tests, on PYTHONPATH.

KILL_PLAN names a file that says where (`tests.flows.deployed.Kill`). The process that gets there removes the file and
is gone, as by `kill -9`. Python's audit events tell where it is: each rename, open and subprocess has one just before
it happens, so nothing is asked of the product.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading


def _watch(plan: str) -> None:
    try:
        with open(plan, encoding="utf-8") as file:
            wanted = json.load(file)
    except OSError:
        return
    words = re.compile(wanted["words"], re.DOTALL)
    left, armed = wanted["nth"], False
    looking: set[int] = set()
    process = os.getpid()

    def told(args: tuple[object, ...]) -> str:
        text = " ".join(map(str, args))
        if wanted["event"] == "os.rename":
            with open(str(args[0]), encoding="utf-8", errors="replace") as file:
                text += file.read(4000)
        return text

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal left, armed
        if os.getpid() != process:
            return  # a fork, until it is another program
        if armed:
            armed = False  # to die has events, too
            _die(plan)
        me = threading.get_ident()
        if event != wanted["event"] or me in looking:
            return
        looking.add(me)  # what `told` opens is no event of the product
        try:
            left -= bool(words.search(told(args)))
        except OSError:
            return
        finally:
            looking.discard(me)
        if left == 0:
            if not wanted["after"]:
                _die(plan)
            armed = True

    sys.addaudithook(hook)


def _die(plan: str) -> None:
    try:
        os.unlink(plan)
    except FileNotFoundError:
        return  # another one has died of it
    os.kill(os.getpid(), signal.SIGKILL)


if plan := os.environ.get("KILL_PLAN"):
    _watch(plan)
