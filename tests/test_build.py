"""What is refused before it is compiled: an archive that its packager left the GPU's code out of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.build import refuse_unfit
from tasks.release import BadInput, SourceTree, UpstreamRelease
from tasks.sources import Sources
from tests.patches.conftest import tree_of

LEAN = ("ggml/src/ggml-cuda/CMakeLists.txt", "ggml/src/ggml-cuda/vendors/cuda.h", "ggml/src/ggml.c")


def source_of(sources: Sources, *paths: str) -> SourceTree:
    tree = tree_of(sources, dict.fromkeys(paths, "x\n"))
    return SourceTree(upstream=UpstreamRelease(build=9611), archive_sha256="", upstream_tree=tree, tree=tree)


def test_an_archive_without_cuda_code_is_not_built_for_a_gpu(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    with pytest.raises(BadInput, match="the archive of b9611 has no CUDA code"):
        refuse_unfit(sources, source_of(sources, *LEAN))
    refuse_unfit(sources, source_of(sources, *LEAN, "ggml/src/ggml-cuda/acc.cu"))
