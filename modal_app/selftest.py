"""Is a freshly built llama-server alive and does it count right here? Asked before it is published. Standard library
and httpx only: used on a machine and in Modal's containers.

A server of the build serves a small model (tasks/selftest.py) and is asked for the log-probabilities of the next token:
of prompts of several lengths by themselves, and of a long one that then grows token by token. Each is compared with
what numpy computed. So a server that dies at its first token, or after it, is seen, and one that answers garbage too.
"""

from __future__ import annotations

import json
import math
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import httpx

from modal_app import wall

MODEL, CASE = "model.gguf", "case.json"
"""What lies in the folder of a self-test."""

BOUND, MEAN = 0.5, 0.15
"""How far (nats) a log-probability of a right server may be from the reference, and of each prompt on average (root of
the mean square). Right ones round activations to 8 bits. They differ by up to 0.17 (0.05) on CPUs, with AMX or not,
and by 0.34 (0.09) on an H200; with one row in fifty of one matrix wrong it is 0.6 to 1.5 (0.20 to 0.40).
`python -m tests.benchmarks selftest` prints both for this machine."""
START_S = 120.0
ANSWER_S = 60.0
POLL_S = 0.02
PORT_TRIES = 3
WORDS = 12


@dataclass(frozen=True)
class Case:
    """What to ask, and what a right server answers. JSON."""

    types: tuple[str, ...]
    """The types of the model's weights, one a block."""
    tokens: tuple[int, ...]
    alone: tuple[int, ...]
    """Lengths of the prompts (the first so many tokens) to ask each by itself."""
    grown: tuple[int, ...]
    """Lengths to ask one after the other, with what was read before in the cache."""
    logprobs: dict[int, tuple[float, ...]]
    """Length -> log-probability (natural, <= 0) of each token of the vocabulary as the next one."""
    model_sha256: str
    """Of the model that this is the case of."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, KeyError or TypeError for anything but what `to_json` gave."""
        found = json.loads(text)
        types, tokens, alone, grown = (tuple(found[name]) for name in ("types", "tokens", "alone", "grown"))
        logprobs = {int(n): tuple(values) for n, values in found["logprobs"].items()}
        return cls(types, tokens, alone, grown, logprobs, found["model_sha256"])


@dataclass(frozen=True)
class Run:
    """One server of a self-test."""

    name: str
    """For a person, such as `on 1 thread`."""
    argv: tuple[str, ...]
    """Further arguments."""


@dataclass(frozen=True)
class Result:
    """What came of a self-test. JSON."""

    ok: bool
    summary: str
    """One line for a person."""
    signal: str = ""
    """What killed the server, such as SIGSEGV; empty when it lives, or ended by itself."""
    at: str = ""
    """When it died: `at load`, `at the first token`, or `at a later answer`."""
    words: str = ""
    """The server's last lines, where it died."""
    computed: bool = True
    """Whether it got as far as the code that computes: one that ends by itself at load did not."""
    passing: bool = False
    """Whether it may be right the next time: no answer in time, or SIGKILL, which no program does to itself."""


class _Ended(Exception):
    """The server has ended; the message says how, in a person's words."""

    def __init__(self, code: int, at: str) -> None:
        self.signal = signal.Signals(-code).name if code < 0 else ""
        self.at = at
        super().__init__(f"killed by {self.signal} {at}" if self.signal else f"ended with exit code {code} {at}")


def runs_of(backend: str, threads: int) -> tuple[Run, ...]:
    """The servers that a build of this backend is tried with on a machine of so many threads."""
    if backend == "cuda":
        # The device is named: without it a server that finds no GPU says so, and computes on the CPU (b11434, arg.cpp).
        return (Run("on the GPU", ("--n-gpu-layers", "99", "--device", "CUDA0")),)
    several = (Run(f"on {threads} threads", ("--threads", str(threads))),) if threads > 1 else ()
    return (Run("on 1 thread", ("--threads", "1")), *several)


def selftest(
    binary: Path,
    folder: Path,
    runs: tuple[Run, ...],
    env: Mapping[str, str],
    *,
    hide: Sequence[Path] = (),
    before_exec: Callable[[], None] | None = None,
) -> Result:
    """Try a llama-server with the self-test in a folder: behind the wall, with `hide` hidden from it too, but for the
    network, by which it is asked. No process is left."""
    case = Case.from_json((folder / CASE).read_text(encoding="utf-8"))
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="llama-release-") as scratch:
        for run in runs:
            log = Path(scratch, "server.log")
            try:
                with _server(binary, folder, run, env, log, hide, before_exec) as ask:
                    far, wrong = _compare(case, ask)
            except _Ended as ended:
                computed = bool(ended.signal) or ended.at != LOADING
                killed = ended.signal == "SIGKILL"
                return Result(False, f"{ended} ({run.name})", ended.signal, ended.at, last_lines(log), computed, killed)
            except (OSError, httpx.HTTPError, KeyError, TypeError, ValueError) as error:
                what = f"no answer {run.name}: {type(error).__name__}: {error}"
                return Result(False, what, words=last_lines(log), passing=isinstance(error, (OSError, httpx.HTTPError)))
            if wrong:
                return Result(False, f"{wrong} ({run.name})")
            worst = max(worst, far)
    asked = len(case.alone) + len(case.grown)
    return Result(
        True,
        f"{asked} answers {' and '.join(run.name for run in runs)}, {', '.join(case.types)}: "
        f"log-probabilities within {worst:.3f} of the reference (bound {BOUND})",
    )


LOADING, FIRST, LATER = "at load", "at the first token", "at a later answer"


def _compare(case: Case, ask: Callable[[tuple[int, ...], bool], dict[int, float]]) -> tuple[float, str]:
    """(the largest difference from the reference, what is wrong with the answers: '' when nothing)."""
    worst = 0.0
    for length, cached in [*((n, False) for n in case.alone), *((n, True) for n in case.grown)]:
        given = ask(case.tokens[:length], cached)
        wanted = case.logprobs[length]
        if set(given) != set(range(len(wanted))):
            return worst, f"after {length} tokens it names {len(given)} of {len(wanted)} tokens"
        gaps = [abs(given[n] - value) for n, value in enumerate(wanted)]
        far, rms = max(gaps), math.sqrt(sum(gap * gap for gap in gaps) / len(gaps))
        if not far <= BOUND or not rms <= MEAN:  # so that NaN is not right either
            return far, (
                f"after {length} tokens its log-probabilities are off by {far:.2f} ({rms:.2f} on average): "
                f"{BOUND} ({MEAN}) is the most a right one may be"
            )
        worst = max(worst, far)
    return worst, ""


@contextmanager
def _server(
    binary: Path,
    folder: Path,
    run: Run,
    env: Mapping[str, str],
    log: Path,
    hide: Sequence[Path],
    before_exec: Callable[[], None] | None,
) -> Iterator[Callable[[tuple[int, ...], bool], dict[int, float]]]:
    """A server of the self-test's model; gives the function that asks it. Raises _Ended when it dies meanwhile."""
    process, http = _listening(binary, folder, run, env, log, hide, before_exec)
    answered = 0

    def ask(tokens: tuple[int, ...], cached: bool) -> dict[int, float]:
        nonlocal answered
        body = {
            "prompt": list(tokens), "n_predict": 1, "temperature": 0.0, "n_probs": 100_000, "cache_prompt": cached,
            "ignore_eos": True,
        }  # fmt: skip
        try:
            said = http.post("/completion", json=body).raise_for_status().json()
        except httpx.TransportError:
            process.wait(ANSWER_S)
            raise
        answered += 1
        return {each["id"]: each["logprob"] for each in said["completion_probabilities"][0]["top_logprobs"]}

    try:
        with closing(http):
            yield ask
    except (httpx.TransportError, subprocess.TimeoutExpired) as error:
        code = process.poll()
        if code is None:
            raise OSError(f"it does not answer in {ANSWER_S:.0f} s") from error
        raise _Ended(code, LATER if answered else FIRST) from error
    finally:
        process.kill()
        process.wait()


def _listening(
    binary: Path,
    folder: Path,
    run: Run,
    env: Mapping[str, str],
    log: Path,
    hide: Sequence[Path],
    before_exec: Callable[[], None] | None,
) -> tuple[subprocess.Popen[bytes], httpx.Client]:
    for tries_left in reversed(range(PORT_TRIES)):
        port = _free_port()
        argv = [
            str(binary), "--model", str(folder / MODEL), "--ctx-size", "512", "--parallel", "1",
            "--host", "127.0.0.1", "--port", str(port), *run.argv,
        ]  # fmt: skip
        with open(log, "wb") as file:
            process = subprocess.Popen(
                wall.behind(argv, env, hide=hide, network=True), env=dict(env),
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=before_exec,
            )  # fmt: skip
        http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S, trust_env=False)
        try:
            _await(process, http)
            return process, http
        except BaseException as error:
            http.close()
            process.kill()
            process.wait()
            taken = isinstance(error, _Ended) and not error.signal and "bind" in last_lines(log)
            if not taken or not tries_left:
                raise
    raise AssertionError("unreachable")


def _await(process: subprocess.Popen[bytes], http: httpx.Client) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with suppress(httpx.TransportError):
            if http.get("/health").status_code == 200:
                return
        if (code := process.poll()) is not None:
            raise _Ended(code, LOADING)
        if time.monotonic() > deadline:
            raise OSError(f"it does not become healthy in {START_S:.0f} s")
        time.sleep(POLL_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_lines(log: Path) -> str:
    """The last lines that a server said."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-WORDS:])
    except OSError:
        return ""
