"""Ports for ranks to meet at."""

from __future__ import annotations

import contextlib
import random
import socket

_PORTS = iter(random.SystemRandom().sample(range(15000, 32000), 17000))
"""Below those that a system hands out by itself (from 32768, or 49152): it may give such a one to any connection made
before the ranks begin to listen."""


def free_port() -> int:
    """One that nothing listens at, another each time."""
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.socket() as taken:
            taken.bind(("localhost", port))
            return port
    raise OSError("no port is free")
