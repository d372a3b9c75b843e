"""A llama-server as somebody starts it: its words, its variables, its folder, and where each of them was said."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Self

from pydantic import Field, SecretStr

from modal_app import redaction
from tasks.flags.table import known
from tasks.release import BadInput, Model

CALLER = "your environment"
"""Where a variable was said that the caller of `import` has set."""
SECRET_FLAGS = {"--api-key": "LLAMA_API_KEY", "--hf-token": "HF_TOKEN", "-hft": "HF_TOKEN"}
"""Flag -> the variable that says the same (common/arg.cpp, set_env)."""
_CONCERNS = re.compile(
    r"(LLAMA|GGML|CUDA|HIP|ROCR|HSA|MUSA|SYCL|ONEAPI|ZES?|OMP|GOMP|KMP|MTMD|NVIDIA)_\w+|HF_(TOKEN|HOME|HUB_CACHE|ENDPOINT)"
    r"|MODEL_ENDPOINT|RADV_\w+|AMD_VULKAN_ICD|XDG_CACHE_HOME"
)
_OURS = ("LLAMA_RELEASE_", "LLAMA_APP_CMD")


class Word(Model):
    """One word after the program's name."""

    text: str
    where: str = Field(default="", description="the file and its key; '' for the command line that was given")


class Variable(Model):
    """One environment variable that the server is given."""

    name: str
    value: str
    where: str = ""


class Secret(Model):
    """A key or a token: by the name of the variable that may hold it."""

    variable: str
    value: SecretStr
    said: str = Field(description="the flag or the variable, and where: without the value")


class Mount(Model):
    """A folder or file of this machine, as a container sees it."""

    inside: PurePosixPath
    outside: Path | None = Field(description="None: a volume whose place is docker's")


class Port(Model):
    """A port of a container that this machine publishes."""

    inside: int
    outside: int
    host: str = Field(default="0.0.0.0", description="the address of this machine that it is published on")


class Launch(Model):
    """What is run. It holds no secret in the clear: see `apart`."""

    words: tuple[Word, ...] = ()
    variables: tuple[Variable, ...] = Field(default=(), description="later ones win")
    folder: PurePosixPath | None = Field(default=None, description="where relative paths begin; None: not known")
    contained: bool = Field(default=False, description="its paths are those of a container")
    mounts: tuple[Mount, ...] = ()
    image: str = Field(default="", description="of the container")
    ports: tuple[Port, ...] | None = Field(default=None, description="None: it listens on this machine's own addresses")
    secrets: tuple[Secret, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="what was dropped and why, and what a person should know")

    def told(self, *notes: str) -> Self:
        """The same, with more to tell, each once."""
        return self.model_copy(update={"notes": tuple(dict.fromkeys((*self.notes, *filter(None, notes))))})

    def having(self, variables: Iterable[Variable]) -> Self:
        return self.model_copy(update={"variables": (*self.variables, *variables)})

    def after(self, count: int) -> Self:
        """The same without its first words."""
        return self.model_copy(update={"words": self.words[count:]})

    def value(self, name: str) -> str | None:
        """What a variable holds; None when it is not given."""
        return next((each.value for each in reversed(self.variables) if each.name == name), None)

    @property
    def backend(self) -> str:
        """`cuda` where the image of llama.cpp says so; '' where it is not known what computes."""
        return "cuda" if re.search(r"llama\.cpp:(server|full)-cuda", self.image) else ""

    def outside(self, path: str) -> Path | None:
        """A path of the server as this machine has it, absolute; None when no mount of its container leads there."""
        inside = PurePosixPath(os.path.normpath((self.folder or PurePosixPath("/")) / path))
        leading = [mount for mount in reversed(self.mounts) if inside.is_relative_to(mount.inside)]
        if leading:  # of two at one place the later one
            mount = max(leading, key=lambda each: len(each.inside.parts))
            return mount.outside / inside.relative_to(mount.inside) if mount.outside else None
        return None if self.contained or (self.folder is None and not path.startswith("/")) else Path(inside)


def words_of(texts: Iterable[str], where: str = "") -> tuple[Word, ...]:
    return tuple(Word(text=text, where=where) for text in texts)


def concerns(name: str) -> bool:
    """Whether a variable may matter to llama-server, a GPU's library or a download; ours do not."""
    return bool(_CONCERNS.fullmatch(name)) and not name.startswith(_OURS)


def of_caller(environment: Mapping[str, str]) -> tuple[Variable, ...]:
    """The variables of who calls `import` that the server would see, too."""
    return tuple(Variable(name=n, value=v, where=CALLER) for n, v in environment.items() if concerns(n))


def given(variables: Mapping[str, str], where: str) -> tuple[Variable, ...]:
    """Variables that were given to this server by name, `where` they were said."""
    return tuple(Variable(name=name, value=value, where=where) for name, value in variables.items())


def mapped(pairs: Sequence[str]) -> tuple[Mount, ...]:
    """What `--map INSIDE=OUTSIDE` says. Raises BadInput for anything else."""
    found = []
    for pair in pairs:
        inside, sign, outside = pair.partition("=")
        if not sign or not inside.startswith("/") or not outside:
            raise BadInput(f"--map {pair} is not understood", todo="give /its/path=/path/here")
        found.append(Mount(inside=PurePosixPath(inside), outside=Path(outside).expanduser().absolute()))
    return tuple(found)


def apart(launch: Launch) -> Launch:
    """The same with its secrets apart from words and variables, and what does not concern a server left out.

    From here on they are hidden in whatever this process says, too.
    """
    words, secrets = _words_apart(launch.words)
    kept, left = [], []
    for each in launch.variables:
        if not concerns(each.name):
            left.append(each.name)
        elif each.name in SECRET_FLAGS.values() or (each.value and redaction.is_secret(each.name, each.value)):
            said = f"{each.name} ({each.where})" if each.where else each.name
            secrets.append(Secret(variable=each.name, value=SecretStr(each.value), said=said))
        else:
            kept.append(each)
    secrets = [*secrets, *(each for each in launch.secrets if not _is_said(each, secrets))]
    for secret in secrets:
        for part in secret.value.get_secret_value().split(","):
            redaction.hide(part)
    update = {"words": words, "variables": tuple(kept), "secrets": tuple(secrets)}
    names = ", ".join(sorted(set(left)))
    return launch.model_copy(update=update).told(f"{names}: dropped, llama-server reads no such variable" * bool(left))


def _is_said(secret: Secret, others: Sequence[Secret]) -> bool:
    """Whether a key is one of those that others say, too."""
    said = {part for each in others for part in each.value.get_secret_value().split(",")}
    return set(secret.value.get_secret_value().split(",")) <= said


def _words_apart(words: Sequence[Word]) -> tuple[tuple[Word, ...], list[Secret]]:
    kept: list[Word] = []
    secrets = []
    at = 0
    while at < len(words):
        word = words[at]
        # llama-server takes --api_key too (common/arg.cpp, common_params_parse_ex), and no --api-key=KEY: people
        # write it all the same
        flag, sign, attached = word.text.partition("=")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        variable = SECRET_FLAGS.get(flag)
        if variable is None:
            kept.append(word)
        else:  # without a value, or with an option for one, it is kept without any: `settle` refuses it
            value = attached
            if not sign and at + 1 < len(words) and known().find(words[at + 1].text) is None:
                at += 1
                value = words[at].text
            said = f"{flag} ({word.where})" if word.where else flag
            secrets.append(Secret(variable=variable, value=SecretStr(value), said=said))
        at += 1
    return tuple(kept), secrets
