"""The settings of the Modal platform: read here and in the containers, and the `[modal]` section of llama-release.toml.

A container imports the same modules as the machine that deployed it, but has neither that machine's environment nor
its files. So what is read here is baked into the images as one variable, and found again in the container.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

MINUTES = 60
HOURS = 60 * MINUTES

BAKED = "LLAMA_RELEASE_MODAL"
"""The variable that holds these settings as JSON in a container; BAKED__NAME sets one of them on the machine."""

NOT_BAKED = {"weights", "prices_usd_per_s", "rare_worker", "warm_starts", "proxy_key_env", "proxy_secret_env"}
"""What no container reads: a new price is not a new deployment."""

SETTINGS_FILE = "llama-release.toml"
_PINNED = r"^[^\s@]+@sha256:[0-9a-f]{64}$"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Weight(Section):
    """Where a file of weights comes from, and what it must be."""

    repo: str = Field(description="the Hugging Face repository, such as unsloth/gemma-4-26B-A4B-it-GGUF")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="the commit: a branch could change under us")
    path: str = Field(description="the file in that repository")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModalSettings(Section):
    """Everything that may be set of the Modal platform."""

    app: str = Field(
        default="llama-release",
        pattern=r"^[A-Za-z0-9._-]{1,40}$",
        description="names of apps, Volumes and Dicts begin with it",
    )
    environment: str | None = Field(default=None, description="the Modal environment; the profile's own when not set")
    secret: str = Field(default="llama-release", description="the Modal Secret that holds LLAMA_API_KEY")

    # The two images have the same CUDA minor and the same distribution, hence the same glibc: what was linked in one
    # runs in the other. Both are pinned to the linux/amd64 manifest, since a tag can be pushed again.
    devel_image: str = Field(
        default="nvidia/cuda:12.8.1-devel-ubuntu24.04"
        "@sha256:4b9ed5fa8361736996499f64ecebf25d4ec37ff56e4d11323ccde10aa36e0c43",
        pattern=_PINNED,
        description="where llama-server is compiled",
    )
    runtime_image: str = Field(
        default="nvidia/cuda:12.8.1-runtime-ubuntu24.04"
        "@sha256:828c4d878adcaa4265d80c95d8ec877149b49bb2419a4cf3bb6aa889bbb7ca2e",
        pattern=_PINNED,
        description="where llama-server is served",
    )

    gpu: str = Field(default="L40S", description="the GPU that serves; L40S:2 are two")
    cuda_architectures: str = Field(default="89", description="what nvcc compiles for; 89 is the L40S")
    gpu_memory_limit: float = Field(
        default=0.92, gt=0, le=1, description="share of GPU memory in use above which no snapshot is taken"
    )
    cpu_trial_mb: int = Field(
        default=64, ge=0, description="trials of models up to this size (MB) run on a CPU: scripted models need no GPU"
    )
    server_cpu: float = Field(default=4.0, gt=0, description="cores of a serving container")
    server_memory_mb: int = Field(default=32768, ge=512, description="memory of a serving container, MiB")
    snapshots: Literal["gpu", "cpu", "off"] = Field(
        default="gpu",
        description="what a container comes back from: a snapshot with the GPU's memory (alpha at Modal), one of the "
        "Python process alone, which llama-server boots after, or none",
    )
    open: bool | None = Field(
        default=None,
        description="whether any request wakes a server, a scanner's too, and not only one with a Modal proxy token; "
        "not set: as the stage was deployed last, and not where nothing was",
    )
    proxy_key_env: str = Field(
        default="LLAMA_RELEASE_PROXY_KEY", description="the variable that holds the id of a Modal proxy token (wk-...)"
    )
    proxy_secret_env: str = Field(
        default="LLAMA_RELEASE_PROXY_SECRET", description="the variable that holds its secret (ws-...)"
    )
    idle_s: int = Field(default=5 * MINUTES, ge=2, le=HOURS, description="seconds without a request before scale-down")
    # The container of a new version comes up beside the one that it replaces: with a limit of 1 it never would.
    max_containers: int | None = Field(
        default=None,
        ge=2,
        description="how many containers of a stage may be up at once; as many as it takes when not set",
    )
    exit_grace_s: int = Field(
        default=5 * MINUTES,
        ge=0,
        le=HOURS,
        description="seconds that a container which is replaced may go on answering",
    )
    start_timeout_s: int = Field(default=15 * MINUTES, ge=10, description="seconds a container may take to come up")
    rare_worker: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="a kind of worker with this share of the starts is found before a release is proved",
    )
    warm_starts: int = Field(default=40, ge=0, description="how many such cold starts are forced at most; 0: none")
    routing_region: str = Field(default="us-east", description="the region that requests are routed through")

    compute_region: tuple[str, ...] = Field(
        default=(),
        description="where containers may run, such as us-east; not set: anywhere. Fewer regions are fewer kinds of "
        "workers and snapshots, at a higher price",
    )

    build_cpu: float = Field(default=16.0, gt=0, description="cores of the builder")
    build_memory_mb: int = Field(default=32768, ge=512, description="memory of the builder, MiB")
    build_timeout_s: int = Field(default=HOURS, ge=60, description="seconds a build may take")

    weights: dict[str, Weight] = Field(
        default_factory=dict,
        description="file name -> where Modal fetches it; a file not named here is uploaded from this machine",
    )
    prices_usd_per_s: dict[str, float] = Field(
        default={"L40S": 0.000542, "cpu_core": 0.0000131, "memory_gib": 0.00000222},
        description="USD a second, for the cost of a release; check them against your plan",
    )

    @classmethod
    def load(cls) -> Self:
        """The settings in force: baked ones in a container; else llama-release.toml, and the environment over it."""
        file = Path(SETTINGS_FILE)
        found: dict[str, Any] = tomllib.loads(file.read_text()).get("modal", {}) if file.is_file() else {}
        found |= json.loads(os.environ.get(BAKED, "{}"))
        for name in cls.model_fields:
            if text := os.environ.get(f"{BAKED}__{name.upper()}"):
                found[name] = json.loads(text) if text[0] in "{[" else text
        return cls.model_validate(found)

    def baked(self) -> dict[str, str]:
        """These settings as a container's environment."""
        return {BAKED: self.model_dump_json(exclude=NOT_BAKED)}

    @property
    def proxy_variables(self) -> dict[str, str]:
        """Header that Modal's proxy asks for -> the variable that holds it."""
        return {"Modal-Key": self.proxy_key_env, "Modal-Secret": self.proxy_secret_env}

    @property
    def proxy_tokens(self) -> dict[str, str]:
        """Header that Modal's proxy asks for -> its value, secrets; {} when one of them is not set."""
        found = {header: os.environ.get(name, "") for header, name in self.proxy_variables.items()}
        return found if all(found.values()) else {}

    def boots_before_snapshot(self, gpu: str | None) -> bool:
        """Whether a server on this GPU is in its snapshot: in one without the GPU's memory only where there is none."""
        return self.snapshots == "gpu" or (self.snapshots == "cpu" and not gpu)

    def stage_app(self, stage: str) -> str:
        """The name of the app that serves a stage."""
        return f"{self.app}-{stage}"

    @property
    def tools_app(self) -> str:
        """The name of the app with the builder."""
        return f"{self.app}-tools"

    @property
    def cuda(self) -> str:
        """CUDA's minor version and the distribution, such as `12.8 ubuntu24.04`, as the devel image's tag tells it.

        Raises ValueError when the runtime image's tag tells another, or none is told.
        """
        told = [re.search(r":(\d+\.\d+)\S*?-(\w+\d+\.\d+)@", image) for image in (self.devel_image, self.runtime_image)]
        names = [" ".join(match.groups()) if match else "" for match in told]
        if not names[0] or names[0] != names[1]:
            raise ValueError(f"{self.devel_image} and {self.runtime_image} must have one CUDA minor and distribution")
        return names[0]
