"""How far right servers are from the self-test's reference, and wrong ones: where its bound comes from.

Right ones are the builds of the tests' store, with one and with all threads and with other ways to compute the same.
Wrong ones serve the self-test's model after something in it was altered, which is what a wrong kernel amounts to.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np

from modal_app.selftest import BOUND, CASE, MEAN, MODEL, Case, Run, _server
from tasks import selftest
from tasks.platforms.local.server import environment
from tasks.settings import Settings
from tasks.store import Store

ALTERED = 0.02
"""The share of a block's bytes that are altered: one row in fifty counts wrongly."""


def measured(binary: Path, folder: Path, *argv: str) -> tuple[float, float, float]:
    """(largest difference of a log-probability, largest root of the mean square of one prompt, seconds), nats."""
    case = Case.from_json((folder / CASE).read_text(encoding="utf-8"))
    far = rms = 0.0
    began = time.monotonic()
    with (
        tempfile.NamedTemporaryFile() as log,
        _server(binary, folder, Run("", argv), environment(binary.parent, None), Path(log.name), (), None) as ask,
    ):
        for length, cached in [*((n, False) for n in case.alone), *((n, True) for n in case.grown)]:
            given = ask(case.tokens[:length], cached)
            gaps = [abs(given[n] - wanted) for n, wanted in enumerate(case.logprobs[length])]
            far, rms = max(far, *gaps), max(rms, math.sqrt(sum(gap * gap for gap in gaps) / len(gaps)))
    return far, rms, time.monotonic() - began


def rope(factor: float) -> Callable[[gguf.GGUFReader], None]:
    def alter(reader: gguf.GGUFReader) -> None:
        reader.fields["llama.rope.freq_base"].parts[-1][0] *= factor

    return alter


def rows(kind: str) -> Callable[[gguf.GGUFReader], None]:
    """Some rows of the matrices of this type are those of other rows."""

    def alter(reader: gguf.GGUFReader) -> None:
        chance = np.random.default_rng(0)
        for tensor in reader.tensors:
            if tensor.tensor_type.name == kind and "ffn_down" in tensor.name:
                data = tensor.data.reshape(-1, tensor.data.shape[-1])
                some = chance.choice(len(data), max(2, int(len(data) * ALTERED)), replace=False)
                data[some] = data[np.roll(some, 1)]

    return alter


def main() -> Iterator[str]:
    """Lines of the report: half a minute."""
    settings = Settings()
    store = Store(settings.cache / "test-store")
    types = selftest.types_of(None)
    folder = selftest.prepare(settings.cache, types)
    yield f"bound: {BOUND} nats for one log-probability, {MEAN} for the root of the mean square of a prompt"
    yield f"{'right':<44}{'largest':>9}{'rms':>9}{'seconds':>9}"
    threads = str(os.cpu_count() or 1)
    ways: list[tuple[str, tuple[str, ...]]] = [("1 thread", ("-t", "1")), (f"{threads} threads", ("-t", threads))]
    builds = sorted(store.builds(), key=lambda build: build.source.upstream.build)
    for build in builds:
        binary = store.build_dir(build.digest) / build.recipe.target
        for name, argv in ways:
            yield _row(f"{build.tag} {build.digest[:6]}, {name}", measured(binary, folder, *argv))
    binary = store.build_dir(builds[-1].digest) / builds[-1].recipe.target
    for name, argv in (
        ("flash attention off", ("-fa", "off")),
        ("physical batch of 64", ("-ub", "64")),
        ("weights not repacked", ("--no-repack",)),
        ("K and V q8_0", ("-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on")),
    ):
        yield _row(f"{builds[-1].tag}, {name}", measured(binary, folder, "-t", "1", *argv))
    yield f"{'wrong':<44}{'largest':>9}{'rms':>9}"
    wrong = [("RoPE base -10 %", rope(0.9)), ("RoPE base -1 %", rope(0.99))]
    wrong += [(f"one row in fifty of {kind}'s ffn_down is another's", rows(kind)) for kind in types]
    for name, alter in wrong:
        with tempfile.TemporaryDirectory() as temporary:
            altered = Path(shutil.copytree(folder, Path(temporary, "case")))
            reader = gguf.GGUFReader(altered / MODEL, "r+")
            alter(reader)
            for array in (tensor.data for tensor in reader.tensors):
                getattr(array.base, "flush", lambda: None)()
            reader.data.flush()
            yield _row(name, measured(binary, altered, "-t", "1"))


def _row(name: str, found: tuple[float, float, float]) -> str:
    far, rms, seconds = found
    caught = "" if far <= BOUND and rms <= MEAN else "  caught"
    return f"{name:<44}{far:>9.4f}{rms:>9.4f}{seconds:>9.2f}{caught}"
