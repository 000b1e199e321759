"""Ports for ranks to meet at."""

from __future__ import annotations

import random
import socket

_PORTS = range(15000, 32000)
"""Below those that a system hands out by itself (from 32768, or 49152): it may give such a one to any connection made
before the ranks begin to listen."""


def free_port() -> int:
    """One that nothing listens at."""
    draw = random.SystemRandom()
    while True:
        port = draw.choice(_PORTS)
        with socket.socket() as taken:
            try:
                taken.bind(("localhost", port))
            except OSError:
                continue
            return port
