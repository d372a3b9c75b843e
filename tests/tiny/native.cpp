// The code that is compiled for this very CPU, as ggml-cpu is.
#include <csignal>

int fault() {
#if FAULT_NEEDS_AMX && !defined(__AMX_TILE__)
    return 0;
#elif FAULT_NEEDS_NATIVE && !defined(TINY_NATIVE)
    return 0;
#else
    return FAULT;
#endif
}
