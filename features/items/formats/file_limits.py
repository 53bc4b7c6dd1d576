"""The bounds of a file that is imported."""

from collections.abc import AsyncIterator

from features.items.formats.rows import Rejected, RowBatches
from shared.problems import ContentTooLarge, Unprocessable

LINES_PER_ROW = 20  # on average: a description may have lines, and a blank one takes time too


async def limit_size(
    chunks: AsyncIterator[bytes], max_size: int, max_rows: int
) -> AsyncIterator[bytes]:
    """Yields the chunks of a file.

    Raises:
        ContentTooLarge: it has more than `max_size` bytes, or far more lines than `max_rows` take.
    """
    size, lines, max_lines = 0, 0, LINES_PER_ROW * max_rows
    async for chunk in chunks:
        size += len(chunk)
        lines += max(chunk.count(b"\n"), chunk.count(b"\r"))
        if size > max_size:
            raise ContentTooLarge(f"An import may have {max_size:,} bytes: divide the file")
        if lines > max_lines:
            raise ContentTooLarge(f"An import may have {max_lines:,} lines: divide the file")
        yield chunk


async def limit_rows(batches: RowBatches, max_rows: int, max_rejected: int) -> RowBatches:
    """Yields the rows of a file.

    Raises:
        Unprocessable: it has more than `max_rows`, or more than `max_rejected` that are not valid.
    """
    rows, rejected = 0, 0
    async for batch in batches:
        rows += len(batch)
        if rows > max_rows:
            raise Unprocessable(f"An import may have {max_rows:,} rows: divide the file")
        wrong = [row for row in batch if isinstance(row, Rejected)]
        rejected += len(wrong)
        if rejected > max_rejected:
            raise Unprocessable(
                f"More than {max_rejected:,} rows are not valid, of which one is in line"
                f" {wrong[0].line}: {wrong[0].detail}"
            )
        yield batch
