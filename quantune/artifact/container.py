"""The layout of a .vmfb: a zip archive that IREE reads from its start, whose end says whether a record follows.

    entry | entry | … | directory | [zip64 directory's end and locator] | directory's end | comment

Everything in it says how long it is, so the archive's end is known without trusting what stands there. A file that ends
before it was cut; bytes after it that are no record were a record once.
"""

from __future__ import annotations

import struct

from quantune.errors import RunFailed

ANNOUNCEMENT = b"quantune: a record follows"
"""The comment of the archive inside an artifact."""

_ENTRY, _DIRECTORY, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
_WHOLE = 0xFFFFFFFF
_AGAIN = "copy or compile it again"


_ALIGNMENT = 64  # IREE begins entries at such offsets; what lies between is zero


class _Cut(Exception):
    """The bytes end before the archive does."""


def announce(program: bytes) -> bytes:
    """The program with the comment that announces a record; IREE does not read that far."""
    if not program.startswith(_ENTRY) or program[-22:-18] != _END or program[-2:] != b"\0\0":
        raise RunFailed("the program is not laid out as a zip archive; IREE writes one unless it is told otherwise")
    return program[:-2] + len(ANNOUNCEMENT).to_bytes(2, "little") + ANNOUNCEMENT


def check_end(data: bytes, where: str) -> None:
    """Raise RunFailed unless a file without a record is one whole program that announces none."""
    if not data.startswith(_ENTRY):
        if data[8:12] == b"IREE":  # a bare flatbuffer, which IREE writes when it is told to
            return
        raise RunFailed(f"{where}: not a compiled program, or a damaged one; expected a .vmfb")
    try:
        end = _end(data)
    except _Cut:
        raise RunFailed(f"{where}: the file ends within its program: it was cut or damaged; {_AGAIN}") from None
    if data[:end].endswith(ANNOUNCEMENT):
        raise RunFailed(f"{where}: the record that follows the program is missing or was cut; {_AGAIN}")
    if end != len(data):
        raise RunFailed(f"{where}: {len(data) - end} bytes follow the program and are no record; {_AGAIN}")


def _end(data: bytes) -> int:
    """Where the archive ends."""
    at = 0
    while (kind := _bytes(data, at, 4)) == _ENTRY:
        packed, _, name, extra = _read(data, at + 18, "<IIHH")
        if packed == _WHOLE:
            packed = _packed64(_bytes(data, at + 30 + name, extra))
        at = _padded(data, at + 30 + name + extra + packed)
    while (kind := _bytes(data, at, 4)) == _DIRECTORY:
        at += 46 + sum(_read(data, at + 28, "<HHH"))
    if kind == _END64:
        at += 12 + _read(data, at + 4, "<Q")[0]
        if _bytes(data, at, 4) != _LOCATOR:
            raise _Cut
        at += 20
        kind = _bytes(data, at, 4)
    if kind != _END:
        raise _Cut
    end = at + 22 + _read(data, at + 20, "<H")[0]
    _bytes(data, at, end - at)
    return end


def _padded(data: bytes, at: int) -> int:
    while at % _ALIGNMENT and data[at : at + 1] == b"\0":
        at += 1
    return at


def _packed64(extra: bytes) -> int:
    """The stored size of an entry that has it in 64 bits: the second number of the zip64 field."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == 1 and size >= 16 and len(extra) >= 20:
            return struct.unpack_from("<Q", extra, 12)[0]
        extra = extra[4 + size :]
    raise _Cut


def _read(data: bytes, at: int, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, _bytes(data, at, struct.calcsize(layout)))


def _bytes(data: bytes, at: int, count: int) -> bytes:
    if at + count > len(data):
        raise _Cut
    return data[at : at + count]
