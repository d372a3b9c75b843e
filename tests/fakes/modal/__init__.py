"""A Modal control plane on loopback, made of the wheel's own protocol classes.

The real SDK and the real `modal` command talk gRPC to it; volume blocks, blobs and requests to servers go over HTTP.
Containers are real processes: the SDK's own entrypoint runs the deployed code, in mount, process and (for a server)
network namespaces of their own, so root is needed. What is asked of it and is not here is refused as UNIMPLEMENTED and
noted in `failures`.

    with FakeModal(tmp_path) as fake:
        subprocess.run(["modal", "deploy", "-m", "modal_app.app"], env=os.environ | fake.env)
        fake.apps.function("name", "Server")  # the protobuf message that was deployed

What is like Modal: names, ids, versions, skipped deploys, rollbacks, errors and their gRPC codes; what a container
finds (`MODAL_TASK_ID`, its image's environment, secrets, uploaded source under /root, volumes in place); the order
of enter methods around a snapshot; scale to zero, overrides and their loss at a redeploy; 222 and the cold retry.

What is not: an image is recorded, not built (a container sees this machine's files, with writes of its own on top, and
the Python that runs the fake); a snapshot is no memory image: a restore boots the code once more up to the checkpoint,
with the identity, environment and secrets that the snapshot was taken with, and goes on from there as the new container
(so what `enter(snap=True)` does outside, it does again, and what it drew at random is another); a volume is committed
when asked and when a container ends, never in between; a server has one container, or `min_containers`.

`lifecycle.py` has what Modal does by chance or as it sees fit, each with where that is documented; `fake.lifecycle`
sets it.
"""

from .faults import Fault
from .lifecycle import Lifecycle, Worker
from .server import FakeModal

__all__ = ["FakeModal", "Fault", "Lifecycle", "Worker"]
