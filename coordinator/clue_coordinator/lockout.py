"""Who has tried too many wrong secrets waits. Only a courtesy to the log: 128 random bits are not found by trying."""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import unquote

# So many wrong ones in so many seconds, and the address is not listened to for as long.
MOST_WRONG = 10
SECONDS = 600.0
# More addresses than that are nobody's typos; the oldest are forgotten.
_MOST_ADDRESSES = 4096


class Lockout:
    """Counts wrong secrets by network address. Safe from all threads, bounded in memory."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()

    def seconds_left(self, peer: str) -> float:
        """How long this peer (as gRPC names it) is not listened to; 0 if it is."""
        with self._lock:
            times = self._recent(_network(peer))
            return times[-MOST_WRONG] + SECONDS - self._monotonic() if len(times) >= MOST_WRONG else 0.0

    def note(self, peer: str) -> None:
        """A wrong secret came from there."""
        network = _network(peer)
        with self._lock:
            self._wrong[network] = [*self._recent(network), self._monotonic()][-MOST_WRONG:]
            self._wrong.move_to_end(network)
            while len(self._wrong) > _MOST_ADDRESSES:
                self._wrong.popitem(last=False)

    def _recent(self, network: str) -> list[float]:
        now = self._monotonic()
        return [at for at in self._wrong.get(network, ()) if at > now - SECONDS]


def _network(peer: str) -> str:
    """The address in ``ipv4:192.0.2.1:1234``; of IPv6 the /64, which is one household's."""
    kind, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return kind
    return str(ipaddress.ip_network((address, 64 if address.version == 6 else 32), strict=False))
