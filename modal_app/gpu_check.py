"""Whether a GPU computes and copies right, now and after its memory came back from a snapshot.

By the driver alone (libcuda through ctypes): nothing has to be installed, and nothing of llama.cpp can be blamed. A
buffer is held over the snapshot; a kernel of a few instructions, compiled by the driver from PTX, counts it up.
"""

from __future__ import annotations

import array
import ctypes

WORDS = 4 * 1024 * 1024
"""16 MB: more than a GPU's caches of one block, and copied in milliseconds."""
_THREADS = 256
_PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry count_up(.param .u64 at, .param .u32 words) {
  .reg .pred %p; .reg .b32 %r<6>; .reg .b64 %d<4>;
  ld.param.u64 %d0, [at]; ld.param.u32 %r0, [words];
  mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x;
  mad.lo.s32 %r4, %r1, %r2, %r3;
  setp.ge.u32 %p, %r4, %r0; @%p bra done;
  cvta.to.global.u64 %d1, %d0; mul.wide.u32 %d2, %r4, 4; add.s64 %d3, %d1, %d2;
  ld.global.u32 %r5, [%d3]; add.s32 %r5, %r5, 1; st.global.u32 [%d3], %r5;
done:
  ret;
}
"""


class GpuFault(Exception):
    """The driver refused something, or what came back is not what was computed; the message says which."""


class HeldBuffer:
    """A buffer on the first GPU, whose every word is its index plus how often it was counted up."""

    def __init__(self, driver: str = "libcuda.so.1") -> None:
        """Raises GpuFault when there is no GPU, or the driver refuses."""
        try:
            self._cuda = ctypes.CDLL(driver)
        except OSError as error:
            raise GpuFault(f"no driver: {error}") from error
        self._counted = 0
        context, module, device = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
        self._kernel, self._at = ctypes.c_void_p(), ctypes.c_uint64()
        self._do("cuInit", 0)
        self._do("cuDeviceGet", ctypes.byref(device), 0)
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context = context
        self._do("cuCtxSetCurrent", context)
        self._do("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(_PTX))
        self._do("cuModuleGetFunction", ctypes.byref(self._kernel), module, b"count_up")
        self._do("cuMemAlloc_v2", ctypes.byref(self._at), ctypes.c_size_t(4 * WORDS))
        words = array.array("I", range(WORDS))
        self._do("cuMemcpyHtoD_v2", self._at, self._address(words), ctypes.c_size_t(4 * WORDS))

    def check(self) -> None:
        """Count up, copy back and compare. May be called from any thread. Raises GpuFault."""
        self._do("cuCtxSetCurrent", self._context)
        arguments = [ctypes.c_uint64(self._at.value), ctypes.c_uint32(WORDS)]
        pointers = (ctypes.c_void_p * 2)(*(ctypes.cast(ctypes.byref(each), ctypes.c_void_p) for each in arguments))
        blocks = -(-WORDS // _THREADS)
        self._do("cuLaunchKernel", self._kernel, blocks, 1, 1, _THREADS, 1, 1, 0, None, pointers, None)
        self._counted += 1
        back = array.array("I", bytes(4 * WORDS))
        self._do("cuMemcpyDtoH_v2", self._address(back), self._at, ctypes.c_size_t(4 * WORDS))
        wanted = array.array("I", range(self._counted, WORDS + self._counted))
        if back != wanted:
            wrong = sum(a != b for a, b in zip(back, wanted, strict=True))
            raise GpuFault(f"{wrong} of {WORDS} words are wrong after {self._counted} counts")

    def _do(self, name: str, *arguments: object) -> None:
        if code := getattr(self._cuda, name)(*arguments):
            words = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(words))
            raise GpuFault(f"{name}: {(words.value or b'').decode() or code}")

    @staticmethod
    def _address(words: array.array[int]) -> ctypes.c_void_p:
        return ctypes.c_void_p(words.buffer_info()[0])
