"""What runs in a container: the SDK's own entrypoint, with the files that Modal's runtime has in /proc/gvisor."""

from __future__ import annotations

import fcntl
import runpy
import socket
import struct

from modal._runtime import gpu_memory_snapshot, task_lifecycle_manager

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:  # a new network has its loopback down
        name, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16s16x", b"lo")))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", name, flags | IFF_UP))
    gpu_memory_snapshot.RUNTIME_CHECKPOINT_WAIT_PATH = "/__modal/checkpoint"
    task_lifecycle_manager.SPEC_ENVIRON_PATH = "/__modal/spec_environ"
    runpy.run_module("modal._container_entrypoint", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
