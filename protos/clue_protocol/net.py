"""Small network helpers that both daemons need."""

import secrets
import socket
from contextlib import suppress

# Linux gives ports from 32768 on to whoever connects; below 16384 is most of what is registered.
NOT_EPHEMERAL = range(16384, 32768)
_TRIES = 200


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of ``host`` that was free a moment ago, and is not of those that the kernel gives to anybody who asks.

    Below 32768: a port that the kernel chose could be the source of somebody's connection before it is listened on.
    """
    return free_ports(1, host)[0]


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """As `free_port`, for a program that needs ``count`` ports, all different: none is taken until it listens."""
    found: list[int] = []
    for _ in range(_TRIES):
        port = secrets.choice(NOT_EPHEMERAL)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, suppress(OSError):
            probe.bind((host, port))
            if port not in found:
                found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"no {count} free ports were found on {host}")


def port_in_use(host: str, port: int) -> bool:
    """True if nothing can listen on ``host:port`` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
        return False
