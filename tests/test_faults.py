"""Which known faults strike a build, on machines as their own words tell of them (/proc/cpuinfo, --version)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import faults, hardware
from tasks.faults import Making, striking
from tasks.hardware import Compiler, Hardware, compiler_here, cpu_here, parse_compiler, parse_cpu, parse_nvcc
from tasks.platforms.local.compile import needs_of_cpu, toolchain
from tasks.platforms.local.compile import striking as striking_here
from tasks.platforms.local.server import lacks
from tasks.release import Recipe
from tasks.settings import LocalSettings, Settings
from tests.test_release import a_build

CPUINFO = Path(__file__).with_name("cpuinfo")
AMX, ROME, MILAN, ALTRA = "sapphire-rapids", "epyc-rome", "epyc-milan", "ampere-altra"
DEBIAN_12 = "c++ (Debian 12.2.0-14+deb12u1) 12.2.0"
DEBIAN_13 = "c++ (Debian 14.2.0-19) 14.2.0"
UBUNTU_24 = "c++ (Ubuntu 13.3.0-6ubuntu2~24.04.1) 13.3.0"
FEDORA_38 = "c++ (GCC) 13.2.1 20240316 (Red Hat 13.2.1-7)"
CLANG = "Debian clang version 14.0.6\nTarget: x86_64-pc-linux-gnu"
MAC = "Apple clang version 15.0.0 (clang-1500.3.9.4)"
NO_AMX = ("-mno-amx-bf16", "-mno-amx-int8", "-mno-amx-tile")


def toolchain_here(recipe: Recipe, settings: Settings) -> dict[str, str]:
    return toolchain(recipe, striking_here(recipe, settings))


def machine(cpu: str, compiler: str, nvcc: str = "", arch: str = "x86_64") -> Hardware:
    text = (CPUINFO / f"{cpu}.txt").read_text()
    return Hardware(cpu=parse_cpu(text), compiler=parse_compiler(compiler), nvcc=nvcc, machine=arch)


@pytest.mark.parametrize(
    ("cpu", "compiler", "snapshots", "expected"),
    [
        (AMX, DEBIAN_12, "none", ["gcc-amx-tile-configuration"]),
        (AMX, DEBIAN_12, "criu", ["gcc-amx-tile-configuration", "criu-amx"]),
        (AMX, DEBIAN_13, "none", []),
        (AMX, DEBIAN_13, "criu", ["criu-amx"]),
        (AMX, FEDORA_38, "none", []),
        (AMX, UBUNTU_24, "none", []),
        (AMX, CLANG, "none", []),
        (AMX, CLANG, "criu", ["criu-amx"]),
        (AMX, "tcc version 0.9.27", "criu", []),
        (AMX, "c++ (Ubuntu 10.5.0-1ubuntu1~20.04) 10.5.0", "criu", []),
        (AMX, "c++ (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0", "none", ["gcc-amx-tile-configuration"]),
        (ROME, DEBIAN_12, "criu", []),
        (MILAN, DEBIAN_12, "criu", []),
        (ALTRA, DEBIAN_12, "criu", []),
    ],
)
def test_what_strikes_a_native_build(cpu: str, compiler: str, snapshots: faults.Snapshots, expected: list[str]) -> None:
    found = striking(machine(cpu, compiler), Making(native=True, snapshots=snapshots))
    assert [fault.id for fault in found] == expected
    assert faults.cpu_flags(found) == (NO_AMX if expected else ())


def test_code_for_any_cpu_has_no_amx_to_lose() -> None:
    assert striking(machine(AMX, DEBIAN_12), Making(native=False, snapshots="criu")) == ()


@pytest.mark.parametrize(
    ("nvcc", "architectures", "expected"),
    [
        ("13.2.51", ("89",), ["nvcc-13.2-iq"]),
        ("13.2.78", ("89",), ["nvcc-13.2-iq"]),
        ("13.2.86", ("89",), []),
        ("12.8.93", ("89",), []),
        ("13.0.48", faults.architectures("89-real;120a-virtual"), ["nvcc-13.0-blackwell-mxfp4"]),
        ("13.0.48", faults.architectures(""), ["nvcc-13.0-blackwell-mxfp4"]),
        ("13.0.48", faults.architectures("89"), []),
        ("", ("89",), []),
    ],
)
def test_what_strikes_cuda_code(nvcc: str, architectures: tuple[str, ...], expected: list[str]) -> None:
    making = Making(native=False, cuda_architectures=architectures)
    assert [fault.id for fault in striking(machine(MILAN, DEBIAN_12, nvcc), making)] == expected


def test_what_avoids_a_fault_wins_and_flags_of_a_recipe_stay() -> None:
    found = striking(machine(MILAN, DEBIAN_12, "13.2.51"), Making(native=False))
    assert faults.kept_from({"CMAKE_CUDA_FLAGS": "-lineinfo"}, found) == {"CMAKE_CUDA_FLAGS": "-lineinfo -Xcicc -O1"}
    assert faults.kept_from({"A": "1"}, found) == {"A": "1", "CMAKE_CUDA_FLAGS": "-Xcicc -O1"}
    assert faults.kept_from({"A": "1"}, ()) == {"A": "1"}


def test_a_compiler_that_is_only_suspected_is_told_and_nothing_is_changed() -> None:
    (fault,) = striking(machine(ALTRA, UBUNTU_24, arch="aarch64"), Making(native=True))
    assert fault.id == "gcc-13.3-arm"
    assert "another compiler" in fault.avoid.advice
    assert not fault.avoid.cpu_flags and not fault.avoid.cmake


def test_every_row_says_what_is_seen_who_says_so_and_what_to_do() -> None:
    for fault in faults.known():
        assert fault.seen and fault.source and fault.title
        assert fault.avoid.cpu_flags or fault.avoid.cmake or fault.avoid.advice
        assert any(value for name, value in fault.where if name != "native"), f"{fault.id} strikes everywhere"
    assert len({fault.id for fault in faults.known()}) == len(faults.known())


@pytest.mark.parametrize(
    ("says", "family", "version"),
    [
        (DEBIAN_12, "gcc", "12.2.0"),
        (UBUNTU_24, "gcc", "13.3.0"),
        (FEDORA_38, "gcc", "13.2.1"),
        ("aarch64-linux-gnu-g++-14 (Debian 14.2.0-19) 14.2.0", "gcc", "14.2.0"),
        ("x86_64-conda-linux-gnu-c++ (conda-forge gcc 12.4.0-1) 12.4.0", "gcc", "12.4.0"),
        (CLANG, "clang", "14.0.6"),
        (MAC, "apple-clang", "15.0.0"),
        ("icpx: something else", "unknown", "0"),
        ("", "unknown", "0"),
    ],
)
def test_compilers_are_known_by_what_they_say(says: str, family: str, version: str) -> None:
    found = parse_compiler(says)
    assert (found.family, found.version) == (family, version)


@pytest.mark.parametrize(
    ("compiler", "knows"),
    [
        ("gcc 10.5.0", False), ("gcc 11.1.0", True), ("gcc 13.3.0", True), ("clang 10.0.1", False),
        ("clang 11.0.0", True), ("apple-clang 12.0.5", False), ("apple-clang 13.0.0", True), ("unknown 0", True),
    ],
)  # fmt: skip
def test_a_compiler_that_makes_amx_code_is_known_by_its_version(compiler: str, knows: bool) -> None:
    family, version = compiler.split()
    assert Compiler(family=family, version=version).knows_amx is knows


def test_nvcc_tells_its_patch_level_in_its_last_lines() -> None:
    said = (
        "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.2, V13.2.78\nBuild cuda_13.2.r13.2"
    )
    assert parse_nvcc(said) == "13.2.78"
    assert parse_nvcc("nothing") == ""


def test_of_a_cpu_only_what_code_depends_on_is_kept() -> None:
    found = parse_cpu((CPUINFO / f"{AMX}.txt").read_text())
    assert {"amx_tile", "avx512f", "avx2", "fma", "pni"} <= set(found.features)
    assert not {"hypervisor", "ibrs", "ssbd", "arch_capabilities", "constant_tsc", "xsaves"} & set(found.features)
    arm = parse_cpu((CPUINFO / f"{ALTRA}.txt").read_text())
    assert {"asimddp", "atomics", "fphp"} <= set(arm.features)
    assert not {"evtstrm", "cpuid", "dcpop"} & set(arm.features)
    assert arm.model == "0x41 0xd0c"


# -- on this machine --------------------------------------------------------------------------------------------------


def test_the_toolchain_of_a_build_says_what_it_is_kept_from_and_what_it_needs_of_a_cpu(tmp_path: Path) -> None:
    settings = Settings(store=tmp_path, local=LocalSettings(snapshots="off"))
    found = toolchain_here(Recipe(), settings)
    assert set(found["cpu"].split()) <= set(cpu_here().features)
    assert ("without" in found) == ("amx_tile" in cpu_here().features and compiler_here().version < "13.2.1")
    assert "cpu" not in toolchain_here(Recipe(cmake={"GGML_NATIVE": "OFF"}), settings)


def test_flags_of_the_environment_and_the_c_compiler_make_another_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(store=tmp_path, local=LocalSettings(snapshots="off"))
    plain = toolchain_here(Recipe(), settings)
    monkeypatch.setenv("CFLAGS", "-O1")
    assert toolchain_here(Recipe(), settings) == {**plain, "flags": "CFLAGS=-O1"}
    monkeypatch.delenv("CFLAGS")
    monkeypatch.setenv("CC", "c++")
    assert toolchain_here(Recipe(), settings)["cc"] == plain["c++"]


def test_amx_off_is_another_build_than_amx_on_where_the_cpu_has_it(tmp_path: Path) -> None:
    off, on = (Settings(store=tmp_path, local=LocalSettings(amx=amx)) for amx in ("off", "on"))
    if "amx_tile" in cpu_here().features:
        assert "-mno-amx-tile" in toolchain_here(Recipe(), off)["without"]
        assert "amx_tile" not in toolchain_here(Recipe(), off)["cpu"].split()
    else:
        assert toolchain_here(Recipe(), off) == toolchain_here(Recipe(), on)
    assert "criu-amx" not in [fault.id for fault in striking_here(Recipe(), on)]


def test_flags_that_leave_a_feature_out_leave_the_need_of_it_out_too() -> None:
    gcc = parse_compiler(DEBIAN_13)
    assert "avx2" not in needs_of_cpu(("-mno-avx2",), gcc)
    assert not [name for name in needs_of_cpu(("-mno-avx512f",), gcc) if name.startswith("avx512")]
    assert needs_of_cpu(("-mno-avx2", "-mavx2"), gcc) == needs_of_cpu((), gcc) == cpu_here().features
    old = parse_compiler("c++ (Ubuntu 10.5.0-1ubuntu1~20.04) 10.5.0")
    assert not [name for name in needs_of_cpu((), old) if name.startswith("amx")]


def test_a_build_of_another_cpu_is_known_by_what_it_may_use_and_old_manifests_say_nothing() -> None:
    here = " ".join(cpu_here().features)
    assert lacks(a_build(toolchain={"cpu": here})) == ()
    assert lacks(a_build(toolchain={"cpu": f"{here} amx_complex avx10_2"})) == ("amx_complex", "avx10_2")
    assert lacks(a_build(toolchain={"cpu": "0123456789ab"})) == ()
    assert lacks(a_build(toolchain={})) == ()


def test_a_cpu_that_tells_its_name_alone_is_compared_by_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr("platform.processor", lambda: "Apple M2")
    cpu_here.cache_clear()
    try:
        assert cpu_here().features == ("Apple_M2",)
        assert lacks(a_build(toolchain={"cpu": "Apple_M2"})) == ()
        assert lacks(a_build(toolchain={"cpu": "Apple_M4"})) == ("Apple_M4",)
        assert lacks(a_build(toolchain={"cpu": "avx avx2"})) == (), "not known"
    finally:
        cpu_here.cache_clear()
