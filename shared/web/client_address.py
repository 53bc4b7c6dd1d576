"""The client's address, behind proxies too, and its networks."""

from functools import lru_cache
from ipaddress import IPv6Network, ip_address

from starlette.requests import HTTPConnection

PREFIXES = (64, 56, 48)
"""What is given to one client of IPv6: to a device, to a home, to a site (RFC 6177)."""


def client_address(request: HTTPConnection) -> str:
    """Returns the client's address, which behind trusted proxies is the one that they report.

    An IPv4 address that is mapped into IPv6 is returned as IPv4 (RFC 4291, section 2.5.5.2).
    """
    return _normalized(request.client.host if request.client else "unknown")


def site_of(request: HTTPConnection) -> str:
    """Returns the largest network that may be the client's alone: the holder of its slots."""
    return site(client_address(request))


def site(host: str) -> str:
    """Returns the largest network of an address that may be one client's alone."""
    return networks_of(_normalized(host))[-1]


@lru_cache(maxsize=10_000)
def _normalized(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:  # the name of a socket, or any other text from a proxy
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


@lru_cache(maxsize=10_000)
def networks_of(address: str) -> tuple[str, ...]:
    """Returns the networks of an IPv6 address by `PREFIXES`, the smallest first; of any other
    address itself.

    A client may have all of any one of them: a /48 has 65,536 networks of /64.
    """
    try:
        known = ip_address(address)
    except ValueError:
        return (address,)
    if known.version == 4:
        return (address,)
    return tuple(str(IPv6Network((int(known), prefix), strict=False)) for prefix in PREFIXES)
