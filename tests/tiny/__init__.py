"""A source tree of two files that builds in a second, through the product's own builder, and calls itself llama-server.

What it serves passes the self-test, or fails it in the way that a test asks for.
"""

from __future__ import annotations

import signal
import tarfile
from pathlib import Path

from tasks.release import SourceTree, UpstreamRelease
from tasks.settings import Settings
from tasks.sources import Sources

FOLDER = Path(__file__).parent
MAIN = (FOLDER / "main.cpp").read_text()
CMAKE = """\
cmake_minimum_required(VERSION 3.14)
project(tiny C CXX)
add_library(ggml-cpu STATIC native.cpp)
target_compile_definitions(ggml-cpu PRIVATE FAULT=0 FAULT_NEEDS_AMX=0 FAULT_NEEDS_NATIVE=0)
if(GGML_NATIVE)
  target_compile_options(ggml-cpu PRIVATE -march=native -DTINY_NATIVE)
endif()
add_executable(llama-server main.cpp)
target_link_libraries(llama-server PRIVATE ggml-cpu)
target_compile_definitions(llama-server PRIVATE N=${LLAMA_BUILD_NUMBER} COMMIT="${LLAMA_BUILD_COMMIT}")
target_compile_definitions(llama-server PRIVATE DIES="at the first token" OFF_BY=0.0)
set_target_properties(llama-server PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
"""


def tiny(settings: Settings, tmp_path: Path, main: str = MAIN, cmake: str = CMAKE, build: int = 9999) -> SourceTree:
    """The tree as a source of this upstream build."""
    root = tmp_path / "pack" / "p" / "llama.cpp"
    root.mkdir(parents=True, exist_ok=True)
    (root / "CMakeLists.txt").write_text(cmake)
    (root / "main.cpp").write_text(main)
    (root / "native.cpp").write_text((FOLDER / "native.cpp").read_text())
    path = tmp_path / "tiny.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "pack" / "p", "p")
    release = UpstreamRelease(build=build)
    sha, tree = Sources(settings.cache).add(release, path)
    return SourceTree(upstream=release, archive_sha256=sha, upstream_tree=tree, tree=tree)


def that_dies(
    by: signal.Signals, *, at: str = "at the first token", with_amx: bool = False, native: bool = False
) -> str:
    """The CMake text of a tree whose server dies so: always, or only of code made with AMX, or for this very CPU."""
    faults = f"FAULT={by.value} FAULT_NEEDS_AMX={int(with_amx)} FAULT_NEEDS_NATIVE={int(native)}"
    changed = CMAKE.replace("FAULT=0 FAULT_NEEDS_AMX=0 FAULT_NEEDS_NATIVE=0", faults)
    return changed.replace('DIES="at the first token"', f'DIES="{at}"')


def that_counts_wrongly(by: float) -> str:
    """The CMake text of a tree whose server's log-probabilities are off by so many nats."""
    return CMAKE.replace("OFF_BY=0.0", f"OFF_BY={by}")
