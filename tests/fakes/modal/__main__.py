"""`python -m tests.fakes.modal FOLDER`: the fake for a shell, until it is interrupted.

Prints the environment that clients need, as lines for `export`.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from . import FakeModal


def main() -> int:
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    with FakeModal(Path(sys.argv[1])) as fake:
        for name, value in fake.env.items():
            print(f"export {name}={value}", flush=True)
        signal.sigwait(stop)
    print("\n".join(fake.failures), file=sys.stderr)
    return 1 if fake.failures else 0


if __name__ == "__main__":
    sys.exit(main())
