"""Which connections are closed when all together take too much."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from app.server.protocol import HttpProtocol

MAX_CONNECTIONS = 1_000
CLOSED_CONNECTIONS = 100  # at a time, as it takes long to choose
MAX_UNSENT_BYTES = 128_000_000  # of responses that clients have not taken yet

log = structlog.get_logger(__name__)


def make_room(connections: "Sequence[HttpProtocol]") -> None:
    """Closes some of the connections that have no request in progress.

    The first to go are those of the network that has most of them, and of these the oldest, so
    that a client that takes all connections takes its own.
    """
    waiting = [each for each in connections if each.is_waiting()]
    counts = Counter(each.network for each in waiting)
    waiting.sort(key=lambda each: (-counts[each.network], each.opened_at))
    closed = waiting[:CLOSED_CONNECTIONS]
    for each in closed:
        if each.transport.is_closing():  # but its client does not take the last response
            each.transport.abort()
        else:
            each.close()
    log.warning("connections_closed", number=len(closed), network=closed[0].network)


def drop_slow_readers(connections: "Sequence[HttpProtocol]") -> None:
    """Aborts connections while too many bytes wait for clients to take them.

    The first to go are those of the network for which most bytes wait, and of these the largest.
    """
    unsent = {each: each.transport.get_write_buffer_size() for each in connections}
    total = sum(unsent.values())
    if total <= MAX_UNSENT_BYTES:
        return
    of_network: Counter[str] = Counter()
    for each, size in unsent.items():
        of_network[each.network] += size
    for each in sorted(unsent, key=lambda each: (-of_network[each.network], -unsent[each])):
        if total > MAX_UNSENT_BYTES:
            total -= unsent[each]
            log.warning("slow_reader_dropped", unsent=unsent[each], network=each.network)
            each.transport.abort()
