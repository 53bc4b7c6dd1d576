"""Keys of PostgreSQL's advisory locks, derived from names."""

from hashlib import blake2b


def advisory_lock(name: str, *of: object) -> int:
    """Returns the key of the advisory lock with this name, a signed 64-bit integer.

    A name begins with the package that takes the lock, so that two features never share one:
    `advisory_lock("orders.import", owner_id)`. Numbers chosen by hand once collided: one feature
    waited for another, and tokens of a revoked key stayed valid for seconds.
    """
    text = "\0".join((name, *map(str, of)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), signed=True)
