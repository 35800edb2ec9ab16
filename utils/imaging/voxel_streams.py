"""Voxels as files hold them, raw or compressed: read to the end of the file, where a checksum stands."""

from __future__ import annotations

import bz2
import contextlib
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import igzip, isal_zlib

from utils.imaging.file_checks import READ_ERRORS

#: The most that deflate can shrink: a compressed file never holds more bytes than this times its own.
DEFLATE_RATIO = 1032
#: How many bytes of voxels a byte of a file can hold; of bzip2, millions.
MOST_BYTES = {"raw": 1, "text": 4, "gzip": DEFLATE_RATIO, "zlib": DEFLATE_RATIO, "bzip2": np.inf}
#: What readers of compressed files raise on a broken one.
STREAM_ERRORS = (*READ_ERRORS, zlib.error, isal_zlib.error)
#: Bytes that are read at once.
_BLOCK_BYTES = 2**22
#: Lets zlib tell by itself whether a stream is its own or gzip's: writers of MetaImage differ.
_EITHER_DEFLATE = 47


def fill(buffer: memoryview, stream: BinaryIO, shape: Sequence[int], *, spare_bytes: int) -> None:
    """Fill a buffer from a stream, and read on to the stream's end, where its checksum is compared.

    Memory that nobody has touched yet is touched only as bytes arrive: a damaged header may ask for more
    than there is.

    Parameters
    ----------
    buffer : memoryview
        Bytes to fill.
    stream : binary file
        Raises by itself where a checksum or length is wrong.
    shape : sequence of int
        Of the volume, for the message.
    spare_bytes : int
        As many bytes after the voxels, or more, say that the shape is wrong; fewer are padding.

    Raises
    ------
    ValueError
        If there are too few or too many bytes.
    """
    begin = spare = 0
    while begin < len(buffer) and (count := stream.readinto(buffer[begin : begin + _BLOCK_BYTES])):
        begin += count
    while spare < spare_bytes and (block := stream.read(_BLOCK_BYTES)):
        spare += len(block)
    if begin < len(buffer) or spare >= spare_bytes:
        raise ValueError(f"shape {tuple(shape)} needs {len(buffer)} bytes, not {begin + spare}")


@contextlib.contextmanager
def opened_voxels(
    path: Path, encoding: str, dtype: np.dtype, *, begin: int, skipped_lines: int = 0, skipped_bytes: int = 0
) -> Iterator[BinaryIO]:
    """Open what a file holds from a byte on, as the bytes of its voxels.

    Parameters
    ----------
    path : Path
        The file.
    encoding : str
        A key of `MOST_BYTES`; "text" are numbers in words.
    dtype : np.dtype
        Of the numbers, which words are read as.
    begin, skipped_lines, skipped_bytes : int
        Byte at which to begin; lines to leave out from there; then bytes, of what is inflated.
    """
    with path.open("rb") as file:
        file.seek(begin)
        for _ in range(skipped_lines):
            if not file.readline():
                break
        if encoding in ("raw", "text"):
            file.seek(skipped_bytes, io.SEEK_CUR)
            yield file if encoding == "raw" else _numbers_in_words(file, dtype)
            return
        stream = _inflated(file, encoding)
        while skipped_bytes > 0 and (block := stream.read(min(skipped_bytes, _BLOCK_BYTES))):
            skipped_bytes -= len(block)
        yield stream


def _inflated(file: BinaryIO, encoding: str) -> BinaryIO:
    if encoding == "zlib":
        return io.BufferedReader(_Inflated(file))
    return (bz2 if encoding == "bzip2" else igzip).open(file, "rb")


def _numbers_in_words(file: BinaryIO, dtype: np.dtype) -> BinaryIO:
    return io.BytesIO(np.fromstring(file.read(), dtype, sep=" ").tobytes())


class _Inflated(io.RawIOBase):
    """A stream of zlib as a file, read to its checksum; behind that nothing may follow."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._engine = zlib.decompressobj(_EITHER_DEFLATE)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._engine.eof:
            block = self._engine.unconsumed_tail or self._file.read(_BLOCK_BYTES)
            if not block:
                raise EOFError("Compressed file ended before the end of its stream")
            inflated = self._engine.decompress(block, len(buffer))
            if inflated:
                buffer[: len(inflated)] = inflated
                return len(inflated)
        if self._engine.unused_data or self._file.read(1):
            raise ValueError("Compressed file goes on behind the end of its stream")
        return 0
