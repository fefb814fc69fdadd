"""Damaged and invented inputs, drawn from a seed, and what is watched while a reader gets them."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from random import Random

from obligations import Obligation

from quantune.errors import QuantuneError
from quantune.process.guard import bounded

MEMORY = 4 << 30
"""How much more than at its start a reader may map."""

SECONDS = 60.0
"""Of processor time, for one input: machines that do other work too do not change it."""

# What only happens where a file is run and not read.
_RUNNING = frozenset(
    {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "ctypes.dlopen"}
)
_TOKENS = (
    b"\x00", b"\xff" * 8, b"\x7f" * 4, b"\n", b"\r\n", b"\"", b"'", b"\\", b"{", b"}", b"[" * 40, b"(" * 40, b"-1",
    b"1e999", b"NaN", b"null", b"true", b"\xed\xa0\x80", b"\xef\xbf\xbf", b"PK\x03\x04", b"PK\x05\x06", b"..", b"/" * 3,
    b"9" * 30, b"a" * 300, b"\\ud800", b"=", b",", b":", b"?", b"&", b"+",
)  # fmt: skip
_watching = False
_seen: list[str] = []


def damaged(data: bytes, random: Random) -> bytes:
    """A copy with one to four damages: flipped bits, cuts, repeats, tokens of many formats, zeros."""
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(result) + 1)
        kind = random.randrange(7)
        if kind == 0 and result:
            result[at % len(result)] ^= 1 << random.randrange(8)
        elif kind == 1:
            del result[at : at + random.choice((1, 4, len(result)))]
        elif kind == 2:
            result[at:at] = random.choice(_TOKENS)
        elif kind == 3:
            token = random.choice(_TOKENS)
            result[at : at + len(token)] = token
        elif kind == 4:
            result[at:at] = result[at : at + random.randrange(1, 64)]
        elif kind == 5:
            result[at : at + random.randrange(1, 64)] = random.randbytes(random.randrange(64))
        else:
            start = random.randrange(len(result) + 1)
            result[at:at] = result[start : start + random.randrange(1, 64)]
    return bytes(result)


def invented(random: Random) -> bytes:
    """Bytes of no format, or a row of tokens."""
    if random.random() < 0.3:
        return random.randbytes(random.randrange(200))
    return b"".join(random.choice(_TOKENS) for _ in range(random.randrange(12)))


def variants(seeds: list[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """``count`` inputs: the seeds themselves, then most of them damaged and some invented."""
    random = Random(seed)
    yield from seeds[:count]
    for _ in range(count - len(seeds)):
        yield invented(random) if random.random() < 0.1 else damaged(random.choice(seeds), random)


def text(data: bytes) -> str:
    """Bytes as the system hands them to a program: what is no UTF-8 becomes lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def hold(
    promise: Obligation, inputs: Iterable[bytes], read: Callable[[bytes], object], *, children: bool = False
) -> None:
    """Give each input to a reader: it reads it or raises a declared error, and runs nothing of it.

    children: the reader starts child processes itself.
    """
    for number, data in enumerate(inputs):
        started = time.process_time()
        with _watched() as seen:
            wrong = _what_went_wrong(read, data, children)
        events = [each for each in seen if not (children and each.startswith(("subprocess.Popen ", "os.posix_spawn ")))]
        if events:
            wrong = f"ran {events[0]}"
        elif time.process_time() - started > SECONDS:
            wrong = f"took {time.process_time() - started:.0f} s"
        promise.tried(wrong is None, f"input {number} ({data[:80]!r}): {wrong}")


def _what_went_wrong(read: Callable[[bytes], object], data: bytes, children: bool) -> str | None:
    try:
        with contextlib.nullcontext() if children else _memory():
            read(data)
    except QuantuneError as error:
        line = str(error)
        return None if line.strip() and len(line) < 20_000 else f"an error of {len(line)} characters"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_CPU)
    with bounded(0, 10_000):
        resource.setrlimit(resource.RLIMIT_CPU, before)  # an endless loop is told by the reader's name, below
        yield


@contextlib.contextmanager
def _watched() -> Iterator[list[str]]:
    global _watching
    _seen.clear()
    _watching = True
    try:
        yield _seen
    finally:
        _watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event in _RUNNING:
        _seen.append(f"{event} {arguments!r:.100}")


sys.addaudithook(_watch)
