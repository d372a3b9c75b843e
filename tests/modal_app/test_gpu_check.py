"""The self-test of a GPU, on a driver made of memory: the one that is there computes right, and the others don't."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from modal_app.gpu_check import WORDS, GpuFault, HeldBuffer

DRIVER = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned f) { return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)1; return 0; }
int cuCtxSetCurrent(void *c) { return c == (void *)1 ? 0 : 201; }
int cuModuleLoadData(void **m, const char *ptx) { *m = (void *)2; return strstr(ptx, ".entry count_up(") ? 0 : 218; }
int cuModuleGetFunction(void **f, void *m, const char *name) { *f = (void *)3; return strcmp(name, "count_up"); }
int cuMemAlloc_v2(uint64_t *at, size_t bytes) { *at = (uint64_t)malloc(bytes); return *at ? 0 : 2; }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) { memcpy((void *)to, from, bytes); return 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) { memcpy(to, (void *)from, bytes); return COPY; }
int cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
  uint32_t *at = (uint32_t *)*(uint64_t *)arguments[0], words = *(uint32_t *)arguments[1];
  if (f != (void *)3 || (uint64_t)x * bx < words) return 1;
  for (uint32_t i = 0; i < words; i++) at[i] += 1;
  at[7] += WRONG;
  return 0;
}
int cuGetErrorString(int code, const char **words) { *words = "it is not well"; return 0; }
"""


def driver(folder: Path, *, wrong: int = 0, copy: int = 0) -> str:
    """A library that adds `wrong` to one word in each count, and whose copies back say `copy`."""
    source, made = folder / "driver.c", folder / "libcuda.so"
    source.write_text(DRIVER)
    subprocess.run(
        ["cc", "-shared", "-fPIC", f"-DWRONG={wrong}", f"-DCOPY={copy}", "-o", str(made), str(source)], check=True
    )
    return str(made)


def test_a_gpu_that_computes_and_copies_right_is_right_each_time(tmp_path: Path) -> None:
    held = HeldBuffer(driver(tmp_path))
    held.check()
    held.check()


def test_one_wrong_word_of_millions_is_told(tmp_path: Path) -> None:
    with pytest.raises(GpuFault, match=f"^1 of {WORDS} words are wrong after 1 counts$"):
        HeldBuffer(driver(tmp_path, wrong=1)).check()


def test_what_the_driver_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(GpuFault, match="^cuMemcpyDtoH_v2: it is not well$"):
        HeldBuffer(driver(tmp_path, copy=700)).check()
    with pytest.raises(GpuFault, match="^no driver: "):
        HeldBuffer(str(tmp_path / "nothing.so"))
