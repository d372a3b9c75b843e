"""Known faults of compilers, CPUs, drivers and snapshots, as data: which of them strike here, and what avoids them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import Field

from tasks.hardware import Compiler, Hardware
from tasks.release import Model

TABLE = Path(__file__).with_name("faults.toml")
Snapshots = Literal["criu", "none"]
"""What idle servers of a build are brought back by on the machine that serves it."""


class Where(Model):
    """Where a fault strikes: everything that is named must be so."""

    compiler: tuple[str, ...] = Field(
        default=(), description="one of these: a family and a PEP 440 specifier, such as `gcc >=11,<13.2.1`"
    )
    cpu: tuple[str, ...] = Field(default=(), description="features that the CPU has")
    machine: tuple[str, ...] = Field(default=(), description="one of these, as uname -m says it")
    native: bool | None = Field(default=None, description="whether code is compiled for this very CPU")
    kernel: str = Field(default="", description="PEP 440 specifier of the kernel's version")
    nvcc: str = Field(default="", description="PEP 440 specifier of the CUDA compiler's version")
    driver: str = Field(default="", description="PEP 440 specifier of the NVIDIA driver's version")
    cuda_architectures: tuple[str, ...] = Field(default=(), description="one of these is compiled for, such as 120")
    snapshots: Snapshots | None = None


class Avoid(Model):
    """What a build is made with so that the fault does not strike it."""

    cpu_flags: tuple[str, ...] = Field(default=(), description="compiler flags of the code made for this very CPU")
    cmake: dict[str, str] = Field(default_factory=dict, description="CMake definitions")
    advice: str = Field(default="", description="for a person, where nothing avoids it for certain")


class Fault(Model):
    """One known fault."""

    id: str = Field(pattern=r"^[a-z0-9.-]+$")
    title: str
    seen: str = Field(description="what a person sees when it strikes")
    source: str = Field(description="who says so")
    costs: str = Field(description="what avoiding it costs; empty when nothing is known to")
    where: Where
    avoid: Avoid

    @property
    def is_avoided(self) -> bool:
        """Whether a build is kept from it, and it is not only told to a person."""
        return bool(self.avoid.cpu_flags or self.avoid.cmake)


class Making(Model):
    """How a build is made and what for, as far as a fault may depend on it."""

    native: bool = Field(description="whether code is compiled for this very CPU")
    cuda_architectures: tuple[str, ...] = ()
    snapshots: Snapshots = "none"


def architectures(text: str) -> tuple[str, ...]:
    """The numbers in a CMAKE_CUDA_ARCHITECTURES, such as `89` and `120` in `89-real;120a-virtual`. Without one upstream
    compiles for all that it knows, up to Blackwell (ggml-cuda's CMakeLists.txt in b11434)."""
    if not text:
        return ("120", "121")
    return tuple(re.sub(r"[a-z]*(-real|-virtual)?$", "", each) for each in text.split(";") if each)


@cache
def known() -> tuple[Fault, ...]:
    """Every fault of the table."""
    return tuple(Fault.model_validate(row) for row in tomllib.loads(TABLE.read_text(encoding="utf-8"))["fault"])


def striking(hardware: Hardware, making: Making, table: Iterable[Fault] | None = None) -> tuple[Fault, ...]:
    """The faults that strike a build made so on this hardware, unless it avoids them."""
    return tuple(fault for fault in (known() if table is None else table) if _strikes(fault.where, hardware, making))


def cpu_flags(faults: Iterable[Fault]) -> tuple[str, ...]:
    """The compiler flags that avoid these faults, sorted, each once."""
    return tuple(sorted({flag for fault in faults for flag in fault.avoid.cpu_flags}))


def cmake(faults: Iterable[Fault]) -> dict[str, str]:
    """The CMake definitions that avoid these faults."""
    return {name: value for fault in faults for name, value in fault.avoid.cmake.items()}


def kept_from(definitions: Mapping[str, str], faults: Iterable[Fault]) -> dict[str, str]:
    """CMake definitions with those that avoid these faults, which win; flags are added to the flags that are there."""
    found = dict(definitions)
    for name, value in cmake(faults).items():
        found[name] = f"{found.get(name, '')} {value}".strip() if name.endswith("_FLAGS") else value
    return found


def _strikes(where: Where, hardware: Hardware, making: Making) -> bool:
    return all(
        (
            not where.compiler or any(_is_compiler(each, hardware.compiler) for each in where.compiler),
            set(where.cpu) <= set(hardware.cpu.features),
            not where.machine or hardware.machine in where.machine,
            where.native is None or where.native == making.native,
            not where.kernel or _within(where.kernel, hardware.kernel.split("-")[0]),
            not where.nvcc or _within(where.nvcc, hardware.nvcc),
            not where.driver or _within(where.driver, hardware.driver),
            not where.cuda_architectures or bool(set(where.cuda_architectures) & set(making.cuda_architectures)),
            where.snapshots is None or where.snapshots == making.snapshots,
        )
    )


def _is_compiler(wanted: str, compiler: Compiler) -> bool:
    family, _, versions = wanted.partition(" ")
    return compiler.family == family and _within(versions, compiler.version)


def _within(specifier: str, version: str) -> bool:
    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:  # what does not tell its version is not known to have the fault
        return False
