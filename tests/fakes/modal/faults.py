"""What can be made to go wrong at an RPC."""

from __future__ import annotations

from dataclasses import dataclass

from grpclib import GRPCError, Status


@dataclass
class Fault:
    """The next `times` calls of `rpc` fail: with `status`, or, without one, the RPC takes effect and the connection
    is dropped before the answer (what a client sees of a control plane that dies, and the SDK tries again)."""

    rpc: str
    status: Status | None = None
    message: str = "injected by the test"
    times: int = 1

    def strike(self) -> None:
        """Raises the fault's gRPC error."""
        if self.status is not None:
            raise GRPCError(self.status, self.message)


class Faults:
    """The faults that are armed."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []

    def arm(self, *faults: Fault) -> None:
        self._armed.extend(faults)

    def clear(self) -> None:
        self._armed.clear()

    def next_of(self, rpc: str) -> Fault | None:
        """The fault for this call of `rpc`, used up by asking."""
        for fault in self._armed:
            if fault.rpc == rpc and fault.times > 0:
                fault.times -= 1
                return fault
        return None
