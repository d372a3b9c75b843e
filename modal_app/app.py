"""The app of a stage: `modal deploy -m modal_app.app`.

Staging and production are two apps made from this one module. Which one, and with which release, is told by the
environment; without that it refuses, and says what to set.
"""

from __future__ import annotations

import os

import modal

from modal_app import images, server
from modal_app.deployment import STORE, Deployment, store_volume

deployment = Deployment.of_environment()
settings = deployment.settings

app = modal.App(deployment.name, tags={"stage": deployment.stage, "release": deployment.release})

# A trial has a key of its own, given to it for this deployment alone. A stage's key is in a Secret that its owner made.
if deployment.stage == "trial":
    secret = modal.Secret.from_dict({server.KEY: os.environ.get(server.KEY)})
else:
    secret = modal.Secret.from_name(settings.secret, environment_name=settings.environment, required_keys=[server.KEY])

# `app.server` puts no proxy of Modal's into the container: requests reach llama-server as they were sent.
serve = app.server(
    # The container imports this module again. What was read from the environment here is baked into the image, so it
    # finds the same there; and as the release's id is part of it, another release is another image, another snapshot.
    image=images.runtime(settings, deployment.baked()),
    gpu=deployment.gpu,
    cpu=settings.server_cpu,
    memory=settings.server_memory_mb,
    # Read-only: nothing that serves can alter what it serves.
    volumes={STORE: store_volume(settings).read_only()},
    secrets=[secret],
    port=server.PORT,
    # llama-server asks for its own API key, once it is up. Without Modal's proxy tokens any request gets it up.
    unauthenticated=deployment.open,
    # One container takes as many requests as llama-server has slots before Modal starts another.
    target_concurrency=deployment.slots,
    max_containers=settings.max_containers,
    min_containers=0,
    scaledown_window=settings.idle_s,
    startup_timeout=settings.start_timeout_s,
    exit_grace_period=deployment.exit_grace_s,
    routing_region=settings.routing_region,
    compute_region=list(settings.compute_region) or None,
    enable_memory_snapshot=deployment.snapshot,
    # The GPU's memory is part of the snapshot: without it, only the Python process would come back quickly.
    experimental_options={"enable_gpu_snapshot": True} if deployment.boots_before_snapshot and deployment.gpu else None,
)

if deployment.boots_before_snapshot:

    @serve
    class Llama(server.LlamaServer):
        deployment = deployment

        @modal.enter(snap=True)
        def before_snapshot(self) -> None:
            self.boot()

        @modal.enter(snap=False)
        def after_snapshot(self) -> None:
            self.back()

        @modal.exit()
        def leave(self) -> None:
            self.stop()

else:

    @serve
    class Llama(server.LlamaServer):  # type: ignore[no-redef]
        deployment = deployment

        # after a snapshot, where there is one: what is imported is all that it has
        @modal.enter()
        def start(self) -> None:
            self.boot()
            self.back()

        @modal.exit()
        def leave(self) -> None:
            self.stop()
