"""Streams: a local or remote file as bytes, decompressed on the way if its name ends in .gz or .zst.

A file that was cut short raises where it ends (EOFError, OSError or zlib.error), after everything before it was read.
"""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from chuxin.errors import InputError
from chuxin.files import filesystem

BUFFER = 1 << 20
"""Bytes read at a time."""


@contextlib.contextmanager
def open_stream(path: str) -> Iterator[io.BufferedReader]:
    """Opens a file for buffered reading.

    Raises:
        InputError: There is no such file.
    """
    fs, name = filesystem(path)
    local = isinstance(fs, LocalFileSystem)
    with contextlib.ExitStack() as stack:
        try:
            stream: Any = stack.enter_context(open(name, "rb", BUFFER) if local else fs.open(name, "rb"))
        except FileNotFoundError as error:
            raise InputError(path, "there is no such file", "Correct the path") from error
        if path.endswith(".gz"):
            stream = _GzipStream(stack.enter_context(gzip.GzipFile(fileobj=stream)))
        elif path.endswith(".zst"):
            stream = stack.enter_context(_ZstdStream(stream))
        if not isinstance(stream, io.BufferedReader):
            stream = stack.enter_context(io.BufferedReader(stream, BUFFER))
        yield stream


class _GzipStream(io.RawIOBase):
    """Hands out what is decompressed before asking for more, so that a file cut short is read up to the cut."""

    def __init__(self, source: gzip.GzipFile) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._source.readinto1(buffer)


class _ZstdStream(io.RawIOBase):
    """Decompresses zstd frames one after another. The library's own reader ends silently where a file is
    cut short.
    """

    def __init__(self, source: BinaryIO) -> None:
        import zstandard

        self._source, self._new = source, zstandard.ZstdDecompressor().decompressobj
        self._errors = zstandard.ZstdError
        self._frame: Any = None
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._input:
                self._input = self._source.read(BUFFER // 8)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the zstd frame has no end")
                return 0
            self._frame = self._frame or self._new()
            try:
                self._output = memoryview(self._frame.decompress(self._input))
            except self._errors as error:
                raise OSError(str(error)) from error
            self._input = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        size = min(len(buffer), len(self._output))
        buffer[:size], self._output = self._output[:size], self._output[size:]
        return size
