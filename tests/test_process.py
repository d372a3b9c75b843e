"""Commands as children: tied to the life of who started them where the kernel can do that, and run where it can't."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.platforms.local.proc import is_alive
from tests import laptop
from tests.laptop import Laptop
from tests.platforms.stand import until

# A parent that starts a child through the product, says its pid, and waits to be killed.
PARENT = """
import subprocess, sys
from tasks.process import ENDS_WITH_PARENT, die_with_parent
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=die_with_parent)
print(ENDS_WITH_PARENT, child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        tied, pid = parent.stdout.readline().split()
        assert tied == b"True" and is_alive(int(pid))
        parent.kill()
    assert until(lambda: not is_alive(int(pid)), 10.0)


@pytest.mark.skipif(bool(laptop.why_not()), reason=laptop.why_not())
def test_where_the_c_library_has_no_prctl_commands_run_all_the_same(tmp_path: Path) -> None:
    runs = "from tasks.process import ENDS_WITH_PARENT, run; print(ENDS_WITH_PARENT, run(['echo', 'ran'], timeout_s=9))"
    done = Laptop(tmp_path).python("-c", runs)
    assert done.stdout == "False Output(code=0, stdout='ran\\n', stderr='')\n"


@pytest.mark.skipif(bool(laptop.why_not()), reason=laptop.why_not())
def test_snapshots_are_known_to_need_linux_before_anything_of_linux_is_asked_for(tmp_path: Path) -> None:
    asks = """
import os
from pathlib import Path
from tasks import criu, cuda_checkpoint
from tasks.platforms.local.snapshot import Wanted, snapshots_here
assert list(Path("/proc").iterdir()) == []
os.environ["PATH"] = "/nowhere"  # no unshare, no setpriv, no criu
print(cuda_checkpoint.why_not())
for gpu in (False, True):
    for depth in ("disk", "memory"):
        print(snapshots_here(Wanted(True, depth, "/no/criu"), gpu=gpu))
"""
    done = Laptop(tmp_path).python("-c", asks)
    said = "snapshots need Linux and its /proc"
    assert done.stdout.splitlines() == [said, *[f"cold: {said}"] * 4]
