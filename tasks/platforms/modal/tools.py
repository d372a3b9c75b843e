"""Calls of the functions in `modal_app/tools.py`, which is deployed when it is not there or not as it is here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modal
from modal.exception import (
    AuthError,
    ConnectionError,
    InternalError,
    PermissionDeniedError,
    ResourceExhaustedError,
    ServiceError,
)

import modal_app
from modal_app.settings import BAKED, ModalSettings
from tasks.platforms.modal.account import command, problem, told
from tasks.release import Problem, ToolingError

DEPLOY_LIMIT_S = 1800.0
"""The first deploy builds the images."""
POLL_S = 2.0


_UNKNOWN = (AuthError, ConnectionError, InternalError, PermissionDeniedError, ResourceExhaustedError, ServiceError)
"""Errors of asking, which say nothing of the call."""


class CallEnded(ToolingError):
    """A call that failed, was ended for its time, or is not known to Modal any more."""


class Tools:
    """The functions of the tools app."""

    def __init__(self, settings: ModalSettings) -> None:
        self._settings = settings
        self._deployed = False

    def call(self, name: str, *args: Any) -> Any:
        """What a function returns. Raises ToolingError or BadInput when it can't be called or fails."""
        function = self._function(name)
        with told(f"calling {name}"):
            try:
                return function.remote(*args)
            except (ValueError, OSError) as error:  # what our function itself raised comes back as it was
                raise ToolingError(
                    f"{name} failed on Modal", evidence=str(error), todo="read it and run it again"
                ) from error

    def spawn(self, name: str, *args: Any) -> str:
        """Start a function and return the call's id: it goes on whatever becomes of this process."""
        function = self._function(name)
        with told(f"starting {name}"):
            return str(function.spawn(*args).object_id)

    def follow(self, call: str, waiting: Callable[[], None]) -> Any:
        """What a started call returns; `waiting` is called while it goes on.

        Raises CallEnded when it will never return anything, another ToolingError when nothing is known of it just now.
        """
        doing = f"waiting for the call {call}"
        with told(doing):
            going = modal.FunctionCall.from_id(call)
            while True:
                try:
                    return going.get(timeout=POLL_S)
                except TimeoutError:
                    waiting()
                except (*_UNKNOWN, Problem):
                    raise
                except Exception as error:
                    said = problem(error, doing)
                    raise CallEnded(said.what, evidence=said.evidence, todo=said.todo) from error

    def _function(self, name: str) -> modal.Function[..., Any, Any]:
        if not self._deployed:
            self._deploy()
            self._deployed = True
        return modal.Function.from_name(self._settings.tools_app, name, environment_name=self._settings.environment)

    def _deploy(self) -> None:
        """Have the tools app as this machine's code says. Modal itself skips what has not changed."""
        baked = self._settings.baked()[BAKED]
        command(
            "deploy", "-m", "modal_app.tools", "--tag", code_digest(baked), environment=self._settings.environment,
            env={BAKED: baked}, limit_s=DEPLOY_LIMIT_S,
        )  # fmt: skip


def code_digest(settings: str) -> str:
    """12 hex characters over our own code for Modal and its settings."""
    folder = Path(modal_app.__file__).parent
    code = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(code + settings.encode()).hexdigest()[:12]
