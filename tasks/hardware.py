"""What the machine is that code is compiled for and runs on, read from the texts that tell: CPU, compiler, kernel.

Everything is a plain value, so that what is decided by it (tasks/faults.py) can be decided for another machine too.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path

from pydantic import Field

from modal_app.child import COMPILERS, environment
from tasks.release import Model

CPUINFO = Path("/proc/cpuinfo")
DRIVER = Path("/proc/driver/nvidia/version")
ASKED_S = 20.0

# What a compiler turns into instructions by itself when it compiles for this very CPU. The rest of /proc/cpuinfo's
# flags says what the kernel does (mitigations, virtualisation) and changes with every kernel.
_X86 = re.compile(
    r"pni|ssse3|sse4\w*|avx\w*|fma4?|f16c|xop|tbm|bmi[12]|abm|popcnt|movbe|aes|pclmulqdq|vaes|vpclmulqdq|gfni|sha\w*"
    r"|adx|amx\w*|movdir\w+|cx16|lahf_lm"
)
_ARM = re.compile(r"asimd\w*|fphp|fcma|sve\w*|sme\w*|i8mm|bf16|atomics|crc32|aes|pmull|sha\w*|jscvt|lrcpc|ilrcpc")
_GCC = re.compile(r"(?:^|/)(?:\S*-)?(?:gcc|g\+\+|cc|c\+\+)(?:-[\d.]+)? (?:\(.*?\) )?(\d+\.\d+(?:\.\d+)?)")
_CLANG = re.compile(r"(Apple )?clang version (\d+(?:\.\d+)*)")


class Cpu(Model):
    """A processor, as far as compiled code depends on it."""

    model: str = Field(default="", description="what it calls itself")
    by_name: bool = Field(default=False, description="its features are not told: its name stands for them")
    features: tuple[str, ...] = Field(
        default=(), description="instruction sets, by the kernel's names for them, sorted"
    )


class Compiler(Model):
    """A C++ compiler."""

    family: str = Field(description="gcc, clang, apple-clang, or unknown")
    version: str = Field(description="such as 12.2.0; 0 when it does not tell")
    says: str = Field(default="", description="the first line of --version")

    def __str__(self) -> str:
        return f"{self.family} {self.version}"

    @property
    def knows_amx(self) -> bool:
        """Whether it can make AMX code, and takes flags that name it (gcc 11, LLVM 11). Of an unknown one: it may."""
        since = {"gcc": 11, "clang": 11, "apple-clang": 13}.get(self.family, 0)
        return int(self.version.split(".")[0]) >= since


class Hardware(Model):
    """A machine that compiles and serves."""

    system: str = Field(default="Linux", description="as uname -s says it")
    machine: str = Field(default="x86_64", description="as uname -m says it")
    kernel: str = Field(default="", description="as uname -r says it")
    cpu: Cpu = Cpu()
    compiler: Compiler
    nvcc: str = Field(default="", description="version of the CUDA compiler, such as 13.2.78; empty without it")
    driver: str = Field(default="", description="version of the NVIDIA driver; empty without it")


def parse_cpu(cpuinfo: str) -> Cpu:
    """The CPU that the text of /proc/cpuinfo tells of: its first one, as all are alike wherever this runs."""
    lines = cpuinfo.split("\n\n")[0].splitlines()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = told.get("flags", "").split()
    features = [flag for flag in flags if _X86.fullmatch(flag)]
    features += [flag for flag in told.get("Features", "").split() if _ARM.fullmatch(flag)]
    names = (told.get(key, "") for key in ("model name", "CPU implementer", "CPU part"))
    return Cpu(model=" ".join(filter(None, names)), features=tuple(sorted(features)))


def parse_compiler(version: str) -> Compiler:
    """The compiler that says this to --version."""
    line = version.strip().splitlines()[0] if version.strip() else ""
    if match := _CLANG.search(version):
        return Compiler(family="apple-clang" if match[1] else "clang", version=match[2], says=line)
    if match := _GCC.search(line):
        return Compiler(family="gcc", version=match[1], says=line)
    return Compiler(family="unknown", version="0", says=line)


def parse_nvcc(version: str) -> str:
    """The version in what nvcc says to --version, with its patch level (`V13.2.78`); '' when there is none."""
    match = re.search(r"\bV(\d+\.\d+\.\d+)\b", version)
    return match[1] if match else ""


@cache
def cpu_here() -> Cpu:
    """This machine's CPU. Without /proc (macOS) its name is all that is known, and stands for its features."""
    try:
        return parse_cpu(CPUINFO.read_text())
    except OSError:
        name = _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()
        return Cpu(model=name, by_name=True, features=(name.replace(" ", "_"),))


MOST_THREADS = 16
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus() -> int:
    """How many threads can compute here at once, 16 at most: of more than a container's quota (cgroup v2, cpu.max)
    allows, or than this process may run on, some would spin at each barrier."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_MAX.read_text().split()
        here = min(here, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup v2; or "max"
        pass
    return max(1, min(here, MOST_THREADS))


def compiler_here(chosen: str = "") -> Compiler:
    """The C++ compiler that CMake takes here: the chosen one, else $CXX, else c++. Unknown when it cannot be asked."""
    return compiler_at(chosen or os.environ.get("CXX") or "c++")


@cache
def compiler_at(name: str) -> Compiler:
    """The compiler of this name. Unknown when it cannot be asked."""
    try:
        done = subprocess.run(
            [*name.split(), "--version"], capture_output=True, text=True, errors="replace", timeout=ASKED_S,
            env={**environment(COMPILERS), "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return Compiler(family="unknown", version="0")
    return parse_compiler(done.stdout)


def driver_version() -> str:
    """The version of the NVIDIA driver, such as 570.86.15; '' where there is none."""
    try:
        match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", DRIVER.read_text())
    except OSError:
        return ""
    return match[1] if match else ""


def hardware_here(nvcc: str = "", driver: str = "", compiler: str = "") -> Hardware:
    """This machine, with what the caller knows of its GPU, and the C++ compiler that it chose if it did."""
    here = os.uname()
    return Hardware(
        system=here.sysname,
        machine=here.machine,
        kernel=here.release,
        cpu=cpu_here(),
        compiler=compiler_here(compiler),
        nvcc=nvcc,
        driver=driver,
    )


def _sysctl(name: str) -> str:
    try:
        argv = ["sysctl", "-n", name]
        done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=ASKED_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
