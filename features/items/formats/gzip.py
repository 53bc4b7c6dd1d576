"""Decompression of an upload."""

import math
import zlib
from collections.abc import AsyncIterator

from shared.problems import BadRequest, ContentTooLarge

MAX_DECOMPRESSED_BYTES = 1 << 16  # of a chunk
MAX_RATIO = 100  # text that is worth storing has one of 3 to 30
BYTES_OF_ANY_RATIO = 1_000_000


async def gunzip(chunks: AsyncIterator[bytes], max_ratio: float = math.inf) -> AsyncIterator[bytes]:
    """Decompresses gzip (RFC 1952, several members too) in chunks of bounded size.

    Raises:
        BadRequest: the data is not gzip, or is truncated.
        ContentTooLarge: it is more than `max_ratio` times as long as its compressed form.
    """
    decompressor = zlib.decompressobj(wbits=31)
    started, received, decompressed = False, 0, 0
    try:
        async for chunk in chunks:
            received += len(chunk)
            # The gzip tool ignores zero bytes between members and after the last one.
            while chunk := chunk.lstrip(b"\0") if decompressor.eof else chunk:
                if decompressor.eof:
                    decompressor = zlib.decompressobj(wbits=31)
                started = True
                text = decompressor.decompress(chunk, MAX_DECOMPRESSED_BYTES)
                decompressed += len(text)
                if decompressed > max(BYTES_OF_ANY_RATIO, max_ratio * received):
                    raise ContentTooLarge(
                        f"Gzip made this more than {max_ratio:g} times smaller: send it as it is"
                    )
                yield text
                chunk = decompressor.unconsumed_tail or decompressor.unused_data
    except zlib.error:
        raise BadRequest("The body is not valid gzip") from None
    if started and not decompressor.eof:
        raise BadRequest("The gzip data ends too early")
