"""Names for PostgreSQL's advisory locks."""

from hashlib import blake2b


def advisory_lock(name: str, *of: object) -> int:
    """The key of the advisory lock with this name, a signed 64-bit integer.

    A name begins with the package that takes the lock, so that no two features can share one:
    `advisory_lock("items.import", owner_id)`. Numbers given by hand once met: signing keys waited
    for search's statistics, and tokens of a revoked key stayed valid for seconds.
    """
    text = "\0".join((name, *map(str, of)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), signed=True)
