"""What the addresses of peers say: multiaddresses, `/ip4/…/tcp/…`, or a relay's with CIRCUIT behind its peer id."""

from __future__ import annotations

CIRCUIT = "/p2p-circuit"


def is_relayed(address: str) -> bool:
    """Whether nobody can connect there but through a relay."""
    return CIRCUIT in address
