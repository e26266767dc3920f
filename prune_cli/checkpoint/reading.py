"""Read exact ranges of bytes of a file descriptor; a file that ends before is an error."""

import os
from collections.abc import Iterator

from prune_cli.errors import InputError

_PIECE_BYTES = 1 << 20


def read_pieces(source: int, start: int, nbytes: int) -> Iterator[memoryview]:
    """`nbytes` of the file descriptor `source` from byte `start`, in pieces of at most 1 MiB.

    A piece is good until the next one is asked for.

    Raises:
        InputError: the file ended before.
    """
    buffer = memoryview(bytearray(min(nbytes, _PIECE_BYTES)))
    while nbytes:
        piece = buffer[: min(nbytes, len(buffer))]
        read_exactly(source, piece, start)
        yield piece
        start, nbytes = start + len(piece), nbytes - len(piece)


def read_exactly(source: int, buffer: memoryview, start: int) -> None:
    """Fill `buffer` with what the file descriptor `source` has from byte `start`.

    Raises:
        InputError: that cannot be read, or the file ends before.
    """
    while buffer:
        try:
            count = os.preadv(source, [buffer], start)
        except OSError as error:
            raise InputError(f"the input cannot be read: {error.strerror}") from error
        if not count:
            raise InputError(f"the input ended at byte {start:,}: it changed while it was read")
        buffer, start = buffer[count:], start + count
