"""Decompression of an upload."""

import zlib
from collections.abc import AsyncIterator

from shared.problems import BadRequest

MAX_DECOMPRESSED_BYTES = 1 << 16  # of a chunk


async def gunzip(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Decompresses gzip (RFC 1952, several members too) in chunks of bounded size.

    Raises:
        BadRequest: the data is not gzip, or is truncated.
    """
    decompressor = zlib.decompressobj(wbits=31)
    started = False
    try:
        async for chunk in chunks:
            # The gzip tool ignores zero bytes between members and after the last one.
            while chunk := chunk.lstrip(b"\0") if decompressor.eof else chunk:
                if decompressor.eof:
                    decompressor = zlib.decompressobj(wbits=31)
                started = True
                yield decompressor.decompress(chunk, MAX_DECOMPRESSED_BYTES)
                chunk = decompressor.unconsumed_tail or decompressor.unused_data
    except zlib.error:
        raise BadRequest("The body is not valid gzip") from None
    if started and not decompressor.eof:
        raise BadRequest("The gzip data ends too early")
