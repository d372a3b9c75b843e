"""Whether anything listens at an endpoint at all."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from tasks.release import Endpoint

_LIMIT_S = 1.0


def nobody_listens(endpoint: Endpoint) -> bool:
    """Whether a connection is refused: nobody listens there. A server that is slow or hangs still takes connections
    (the kernel does it for the server), and a proxy in front of one that died takes them too."""
    at = urlsplit(endpoint.base_url)
    port = at.port or (443 if at.scheme == "https" else 80)
    try:
        socket.create_connection((at.hostname or "", port), timeout=_LIMIT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
