"""The client's address, behind proxies too, and its network."""

from ipaddress import IPv6Network, ip_address

from starlette.requests import HTTPConnection


def client_address(request: HTTPConnection) -> str:
    """Returns the client's address, which behind trusted proxies is the one that they report.

    An IPv4 address that is mapped into IPv6 is returned as IPv4 (RFC 4291, section 2.5.5.2).
    """
    host = request.client.host if request.client else "unknown"
    try:
        address = ip_address(host)
    except ValueError:  # the name of a socket, or any other text from a proxy
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


def network_of(address: str) -> str:
    """Returns the /64 network of an IPv6 address, and any other address as it is.

    A client with IPv6 has at least 2⁶⁴ addresses (RFC 6177), which count as one.
    """
    try:
        known = ip_address(address)
    except ValueError:
        return address
    return str(IPv6Network((int(known), 64), strict=False)) if known.version == 6 else address
