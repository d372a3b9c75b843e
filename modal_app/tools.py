"""The app with everything that is done with the store inside Modal: build, inspect, try, ask, fetch weights.

It is deployed by itself whenever a release needs one of them. Only `try_build_on_gpu` needs a GPU.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import modal

from modal_app import images, wall
from modal_app.archives import unpack
from modal_app.child import serving
from modal_app.compile import (
    MANIFEST,
    Compiled,
    CompileFailed,
    collect,
    compile_target,
    products,
    sha256_of,
    tree_hash,
)
from modal_app.deployment import STORE, store_volume
from modal_app.records import Records, called, differing
from modal_app.selftest import runs_of, selftest
from modal_app.settings import MINUTES, ModalSettings

CACHE = "/llama-release-cache"
REPORT_EVERY_S = 1.0
CPUS = 2  # of what tries a build: os.cpu_count() tells the host's, and threads that wait for a CPU spin

settings = ModalSettings.load()
app = modal.App(settings.tools_app)

store = store_volume(settings)
cache = modal.Volume.from_name(
    f"{settings.app}-cache", environment_name=settings.environment, create_if_missing=True, version=2
)
records = Records(store, settings.app)
progress = modal.Dict.from_name(
    f"{settings.app}-progress", environment_name=settings.environment, create_if_missing=True
)

build_image = images.devel(settings, settings.baked())
serve_image = images.runtime(settings, settings.baked())
fetch_image = images.fetching(settings.baked())


@app.function(
    image=build_image,
    cpu=settings.build_cpu,
    memory=settings.build_memory_mb,
    timeout=settings.build_timeout_s,
    volumes={STORE: store, CACHE: cache},
    max_containers=1,
)
def compile_build(order: dict[str, Any]) -> dict[str, Any]:
    """Compile sources/<tree>.tar.gz into builds/<digest>/, and say what is there now.

    The folder has no manifest yet, so nobody takes it for a build: whoever ordered it has it inspected first. One that
    is whole, with its manifest, is not touched.

    Args:
        order: `digest`, `tree` (git tree hash of the source), `target`, `definitions` (CMake's), `cpu_flags` (further
            compiler flags of the code that computes on the CPU).

    Returns:
        `files` (name -> sha256, of what is there), `compiled` (the same of what came out), `objects`, `cache_hits` and
        `seconds`; or `failed` with the compiler's own words and `machine` with what the machine lacks, if that is why.
    """
    started = time.monotonic()
    store.reload()
    # Always the same folder: the compiler cache then knows the neighbouring release's objects.
    work = Path("/tmp/llama-release-build")
    shutil.rmtree(work, ignore_errors=True)
    source = work / "src"
    source.mkdir(parents=True)
    archive = Path(STORE, "sources", f"{order['tree']}.tar.gz")
    unpack(archive, source)
    if (found := tree_hash(source)) != order["tree"]:
        return {
            "failed": f"{archive.name} unpacks to the tree {found}",
            "machine": f"remove it: modal volume rm {settings.app} sources/{archive.name}",
        }
    try:
        made = compile_target(
            source, work / "out", order["target"], order["definitions"], log=work / "log",
            cache=Path(CACHE, "sccache"), progress=_reporter(order["digest"]), cpu_flags=order["cpu_flags"],
        )  # fmt: skip
    except CompileFailed as error:
        print(error.words, flush=True)
        return {"failed": error.words, "machine": error.machine}
    finally:
        cache.commit()
    return _put(work / "out" / "bin", order, made, started)


def _put(bin_folder: Path, order: dict[str, Any], made: Compiled, started: float) -> dict[str, Any]:
    files = collect(bin_folder, order["target"], Path(STORE, "builds", order["digest"]))
    store.commit()
    return {
        "files": files,
        "compiled": {name: sha256_of(file) for name, file in sorted(products(bin_folder, order["target"]).items())},
        "objects": made.objects,
        "cache_hits": made.cache_hits,
        "seconds": round(time.monotonic() - started, 1),
    }


def _reporter(digest: str) -> Any:
    """Every object is a line of the log; now and then it is also written where the flow looks."""
    last = 0.0

    def report(done: int, total: int, what: str) -> None:
        nonlocal last
        print(f"[{done}/{total}] {what}", flush=True)
        if time.monotonic() - last > REPORT_EVERY_S or done == total:
            last = time.monotonic()
            progress.put(digest, (done, total, what))

    return report


@app.function(image=serve_image, cpu=2.0, timeout=10 * MINUTES, volumes={STORE: store.read_only()})
def inspect(digest: str, target: str) -> dict[str, Any]:
    """What a build looks like from where it will be served.

    Returns:
        `files` (name -> sha256), `missing` (libraries that the runtime image does not have) and `version` (exit
        code, stdout and stderr of `--version`).
    """
    store.reload()
    folder = Path(STORE, "builds", digest)
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    missing = [f"{name}: {lost}" for name in files for lost in _not_found(folder, name)]
    return {"files": files, "missing": missing, "version": _run(folder, target, ["--version"])}


def _try(digest: str, target: str, case: str, backend: str) -> dict[str, Any]:
    store.reload()
    folder = Path(STORE, "builds", digest)
    return asdict(selftest(folder / target, Path(STORE, "selftest", case), runs_of(backend, CPUS), serving(folder)))


@app.function(image=serve_image, cpu=float(CPUS), timeout=10 * MINUTES, volumes={STORE: store.read_only()})
def try_build(digest: str, target: str, case: str) -> dict[str, Any]:
    """What the self-test selftest/<case> says of a build: a `modal_app.selftest.Result`. On the CPU."""
    return _try(digest, target, case, "cpu")


@app.function(
    image=serve_image, gpu=settings.gpu, cpu=float(CPUS), timeout=10 * MINUTES, volumes={STORE: store.read_only()}
)
def try_build_on_gpu(digest: str, target: str, case: str) -> dict[str, Any]:
    """As `try_build`, on the GPU that serves: some ten seconds of it, before anything is built upon this binary."""
    return _try(digest, target, case, "cuda")


def _not_found(folder: Path, name: str) -> list[str]:
    env = serving(folder)
    argv = wall.behind(["ldd", folder / name], env)  # which runs what the file names as its interpreter (ldd(1))
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    if done.returncode in wall.NOT_STARTED:  # it has said nothing of what is missing
        raise RuntimeError(done.stderr)
    lost = re.findall(r"(\S+) => not found", done.stdout)
    # The driver's own library comes with the GPU: it is in no image.
    return [library for library in lost if not library.startswith("libcuda.so")]


@app.function(image=serve_image, cpu=2.0, timeout=5 * MINUTES, volumes={STORE: store.read_only()})
def ask(digest: str, target: str, argv: list[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the binary with an argv that ends it at once, such as one with `--version`."""
    store.reload()
    return _run(Path(STORE, "builds", digest), target, argv)


@app.function(image=serve_image, cpu=2.0, timeout=5 * MINUTES, volumes={STORE: store.read_only()})
def search(digest: str, pattern: bytes) -> list[str]:
    """What a pattern's group finds in the files of a build, sorted, each once."""
    store.reload()
    found: set[bytes] = set()
    for path in Path(STORE, "builds", digest).iterdir():
        if path.name != MANIFEST and path.is_file():
            found.update(re.findall(pattern, path.read_bytes()))
    return sorted(text.decode() for text in found)


@app.function(image=fetch_image, cpu=4.0, timeout=60 * MINUTES, volumes={STORE: store})
def fetch(name: str, weight: dict[str, str]) -> int:
    """Have a file of weights in files/<sha256>/<name>; its size in bytes.

    Raises ValueError when what was downloaded has another sha256.
    """
    from huggingface_hub import hf_hub_download  # type: ignore[import-not-found]  # only in its image

    store.reload()
    target = Path(STORE, "files", weight["sha256"], name)
    if not target.exists():
        got = Path(
            hf_hub_download(weight["repo"], weight["path"], revision=weight["revision"], local_dir="/tmp/weights")
        )
        if (found := sha256_of(got)) != weight["sha256"]:
            raise ValueError(f"{weight['repo']}/{weight['path']} has sha256 {found}, not {weight['sha256']}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(got, target.with_name(f".{name}"))
        os.replace(target.with_name(f".{name}"), target)
        store.commit()
    return target.stat().st_size


def _run(folder: Path, target: str, words: list[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); 126 for a file that cannot be run, as a shell says it."""
    try:
        env = serving(folder)
        done = subprocess.run(
            wall.behind([folder / target, *words], env), env=env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=60,
        )  # fmt: skip
    except OSError as error:
        return 126, "", str(error)
    return done.returncode, done.stdout, done.stderr


BY_HAND = """
modal run modal_app/tools.py::build [--digest DIGEST] [--force]   compile a build that was ordered; what is there and
                                                                  whole is compared with, and left as it is
modal run modal_app/tools.py::prove [--digest DIGEST]             inspect a build where it is served, and try it"""
"""`modal run ...::build --help` shows no more than the names of the options: the SDK does not read docstrings."""

# -- by hand ---------------------------------------------------------------------------------------------------------
# `modal run modal_app/tools.py::status`, `::build --force`, `::prove`, from the folder of a checkout. They know what is
# on the store's Volume; only `upgrade` orders builds and publishes them.


@app.local_entrypoint()
def build(digest: str = "", force: bool = False) -> None:
    """Compile a build that a release ordered. Default: the one in production.

    One that is there and whole is served as it is: with --force it is compiled anew all the same, compared, and left
    untouched. What was compiled is no release yet; `llama-release upgrade` proves it.
    """
    order = records.order(digest or records.served())
    there = records.document(f"builds/{order['digest']}/{MANIFEST}")
    if there and not force:
        print(f"builds/{order['digest']} is there, of {called(there)}; --force compiles it anew and compares")
        return
    made = compile_build.remote(order)
    if "failed" in made:
        raise SystemExit(f"{made['failed']}\n{made['machine']}".strip())
    changed = sorted(name for name, known in made["files"].items() if made["compiled"].get(name) != known)
    print(f"{made['objects']} objects in {made['seconds']} s, {made['cache_hits']} of them from the compiler's cache")
    print(f"differs from builds/{order['digest']}, which stays as it is: {', '.join(changed)}" if changed
          else f"builds/{order['digest']} has the same files")  # fmt: skip
    if not there:
        print("it is not published: `llama-release upgrade` inspects and proves it, and writes its manifest")


@app.local_entrypoint()
def prove(digest: str = "") -> None:
    """Inspect a build where it is served, and try it with the self-tests in the store. Default: the one in production.

    A build for a GPU is tried on one: about ten seconds of it. Exits with 1 when something is wrong.
    """
    manifest = records.document(f"builds/{(digest := digest or records.served())}/{MANIFEST}")
    if manifest is None:
        raise SystemExit(f"there is no finished build {digest}; `::status` shows those that are there")
    target = manifest["recipe"]["target"]
    seen = inspect.remote(digest, target)
    wrong = [f"{name} is not what its manifest says" for name in differing(manifest["files"], seen["files"])]
    wrong += seen["missing"] + ([] if seen["version"][0] == 0 else [f"--version: {seen['version']}"])
    print(f"{called(manifest)}: {len(seen['files'])} files, {(seen['version'][1] or seen['version'][2]).strip()}")
    tried = try_build_on_gpu if manifest["recipe"]["backend"] == "cuda" else try_build
    cases = records.listed("selftest")
    for case in cases:
        result = tried.remote(digest, target, case)
        print(f"self-test {case}: {result['summary']}")
        wrong += [] if result["ok"] else [f"self-test {case}: {result['words'] or result['summary']}"]
    if not cases:
        print("no self-test is in the store yet: an upgrade puts it there")
    if wrong:
        raise SystemExit("\n".join(wrong))


@app.local_entrypoint()
def status() -> None:
    """What the store on the Volume has: stages, builds, and how the servers came up last. Starts nothing."""
    for stage in ("production", "staging"):
        pointer = records.document(f"stages/{stage}.json") or {}
        release = records.document(f"releases/{pointer.get('release')}.json")
        serves = (
            f"b{release['upstream']['build']} ({pointer['release']}), build {release['build']}" if release else "none"
        )
        print(f"{stage:11} {serves}")
        boots = modal.Dict.from_name(
            f"{settings.stage_app(stage)}-boots", environment_name=settings.environment, create_if_missing=True
        )
        kept = dict(boots.items())
        for key in sorted(kept)[-3:]:
            boot = json.loads(kept[key])
            print(f"            {boot['at'][:19]} {boot['kind']} {boot['reason'][:100]}")
    for digest in records.listed("builds"):
        manifest = records.document(f"builds/{digest}/{MANIFEST}")
        print(f"build       {digest} {called(manifest) if manifest else 'without a manifest: not finished'}")
    for digest in (Path(name).stem for name in records.listed("orders")):
        if records.document(f"builds/{digest}/{MANIFEST}") is None:
            print(f"ordered     {digest}")
    print(BY_HAND)
