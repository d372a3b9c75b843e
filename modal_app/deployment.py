"""What is deployed: one stage serving one release. A container finds it baked into its image."""

from __future__ import annotations

import hashlib
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

import modal
from pydantic import BaseModel, ConfigDict, Field

from modal_app.settings import NOT_BAKED, ModalSettings, Section
from modal_app.warmup import nonce_of

STORE = "/llama-release-store"
"""Where the store's Volume is mounted: builds/<digest>/ and files/<sha256>/<name> are in it."""

STAGE, RELEASE, BAKED = "LLAMA_RELEASE_STAGE", "LLAMA_RELEASE_ID", "LLAMA_RELEASE_DEPLOYMENT"

HOW = f"""\
which release on which stage? Say it in the environment:
  {STAGE}=staging|production
  {RELEASE}=<id of a release in the store, or the path of a release file>
for example: {STAGE}=staging {RELEASE}=3f0c9a1b2c4d modal deploy -m modal_app.app
`llama-release status` shows the ids; `llama-release upgrade` does all of this, with its proofs."""


class FileRef(BaseModel):
    """A file that a release needs, by content."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str


AUTO_SLOTS = 4
"""What llama-server takes where it is not told how many (b11434, tools/server/server.cpp)."""
PARTS = Path("/tmp/model")
"""Where a container has the parts of a split model side by side; it serves one."""


class Deployment(Section):
    """One stage serving one release."""

    stage: Literal["staging", "production", "trial"]
    name: str = Field(description="the app's name")
    release: str = Field(description="release id: a new release is always another deployment, and another snapshot")
    generation: str = Field(default="", description="tells a redeploy of the same release, and so its snapshot, apart")
    build: str = Field(description="the folder builds/<digest>/ to serve from")
    argv: tuple[str, ...] = Field(description="files stand as {model}, {mmproj}, {chat_template}, ...")
    env: dict[str, str] = Field(default_factory=dict, description="variables that llama-server sees besides")
    files: dict[str, FileRef] = Field(description="{model.2} is the second part of {model}")
    gpu: str | None = Field(description="None: a container without a GPU")
    key: str = Field(
        default="", description="tells one API key from another: a snapshot keeps the key it was made with"
    )
    code: str = Field(default="", description="tells one version of this package from another")
    wait: bool = Field(default=True, description="a container is up when llama-server is healthy, not when it listens")
    settings: ModalSettings

    @property
    def snapshot(self) -> bool:
        """Whether containers come from a snapshot. A trial is used once: a snapshot would only cost."""
        return self.stage != "trial" and self.settings.snapshots != "off"

    @property
    def boots_before_snapshot(self) -> bool:
        """Whether llama-server is in the snapshot."""
        return self.snapshot and self.settings.boots_before_snapshot(self.gpu)

    @property
    def open(self) -> bool:
        """Whether any request wakes it. A trial is there for minutes, at an address that nobody was told."""
        return self.stage == "trial" or bool(self.settings.open)

    @property
    def nonce(self) -> str:
        """What is in a slot of every snapshot of this deployment, and so of the containers that took them or come
        from them, and of no other (modal_app/warmup.py).

        Modal takes a snapshot for each kind of worker that a container lands on, and does not say beforehand which one
        the next container comes from. So all have the same nonce, and whoever asks need not know.
        """
        return nonce_of(self.name, self.release, self.generation, self.key)

    @property
    def exit_grace_s(self) -> int:
        """Seconds that answers may go on when a container is to end. Of a trial, nobody waits for one."""
        return 0 if self.stage == "trial" else self.settings.exit_grace_s

    @property
    def gpus(self) -> int:
        """How many GPUs a container has: `L40S:2` are two."""
        return gpus_of(self.gpu)

    @property
    def slots(self) -> int:
        """Requests that llama-server answers at the same time."""
        said = [int(after) for word, after in pairwise(self.argv) if word in ("--parallel", "-np")]
        return said[-1] if said and said[-1] > 0 else AUTO_SLOTS

    @property
    def vision(self) -> bool:
        return "mmproj" in self.files

    def command(self, store: Path, port: int) -> list[str]:
        """The argv of llama-server in a container. The parts of a split model are linked into one folder, in which it
        looks for them under their own names (llama_split_path)."""
        words = list(self.argv)
        parts = [name for name in self.files if name.partition(".")[0] == "model"]
        for name, ref in self.files.items():
            path = store / "files" / ref.sha256 / ref.name
            if len(parts) > 1 and name in parts:
                PARTS.mkdir(exist_ok=True)
                link = PARTS / ref.name
                link.unlink(missing_ok=True)
                link.symlink_to(path)
                path = link
            words = [word.replace(f"{{{name}}}", str(path)) for word in words]
        return [str(store / "builds" / self.build / "llama-server"), *words, "--host", "0.0.0.0", "--port", str(port)]

    @property
    def mark(self) -> str:
        """16 hex characters that tell it from any other: a boot record has those of what its container was made from.

        The same release in the same generation may be deployed with another key, other settings or other code of ours.
        """
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def text(self) -> str:
        """All of it, for `model_validate_json`."""
        return self.model_dump_json(exclude={"settings": NOT_BAKED})

    def baked(self) -> dict[str, str]:
        """This deployment as a container's environment."""
        return {BAKED: self.text}

    @classmethod
    def of_environment(cls) -> Self:
        """The deployment that the environment names; exits with what to set when it names none."""
        if text := os.environ.get(BAKED):
            return cls.model_validate_json(text)
        stage, release = os.environ.get(STAGE), os.environ.get(RELEASE)
        if stage not in ("staging", "production") or not release:
            sys.exit(HOW)
        settings = ModalSettings.load()
        told = _Told.model_validate_json(_release_file(release, settings))
        return cls.model_validate(
            {
                "stage": stage,
                "name": settings.stage_app(stage),
                "release": Path(release).stem,
                "gpu": settings.gpu or None,
                "settings": settings,
                **told.model_dump(),
            }
        )


def gpus_of(gpu: str | None) -> int:
    """The number of GPUs that a name of Modal's asks for, such as `L40S:2`; 0 for none."""
    count = (gpu or "").partition(":")[2]
    return int(count) if count.isdecimal() else int(bool(gpu))


class _Told(BaseModel):
    """What a container needs of a release file (`releases/<id>.json` in the store)."""

    build: str
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    files: dict[str, FileRef]


def store_volume(settings: ModalSettings) -> modal.Volume:
    """The Volume that the store lives on."""
    return modal.Volume.from_name(
        settings.app, environment_name=settings.environment, create_if_missing=True, version=2
    )


def _release_file(release: str, settings: ModalSettings) -> bytes:
    if Path(release).is_file():
        return Path(release).read_bytes()
    try:
        return b"".join(store_volume(settings).read_file(f"releases/{release}.json"))
    except (FileNotFoundError, modal.exception.NotFoundError):
        sys.exit(f"there is no release {release} in the Volume {settings.app}\n{HOW}")
