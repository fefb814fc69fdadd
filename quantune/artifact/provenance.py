"""What an artifact says of itself: how it was made and which bytes it consists of, kept inside the one .vmfb file.

IREE reads a .vmfb from its start and ignores what follows the program, so the record is a trailer:

    program | JSON | sha256 of the JSON (32 bytes) | length of the JSON (8 bytes, little endian) | magic (16 bytes)

The JSON holds the program's sha256: IREE itself runs a program with a flipped bit, and answers nonsense. The program is
laid out as a zip archive, and the archive's comment says that a record follows: a file that was cut is told from a
plain .vmfb wherever it was cut (quantune.artifact.container).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from quantune.artifact.container import announce, check_end
from quantune.artifact.records import LayerExecution, Processor
from quantune.errors import RunFailed

FORMAT = 3
_SINCE = {"measured": 2, "sources": 2, "reasons": 3}
"""Fields that came later: the format that brought them."""
_ONCE = {"created": 1}
"""Fields of the past, which are read and forgotten: the last format that had them."""
_MAGIC = b"\nquantune-trail\n"
_TAIL = 32 + 8 + len(_MAGIC)
_MOST = 2**63 - 1


@dataclass(frozen=True)
class Measured:
    """What a search measured of the artifact: what `quantune-verify` compares with.

    accuracy: by ``metric`` (of shares 0 to 1) on ``images`` evaluation images. evaluation: their fingerprint.
    latency_ms: of one call on ``threads`` threads of the processor that was searched on, None where not measured.
    """

    accuracy: float
    images: int
    evaluation: str
    latency_ms: float | None
    threads: int
    metric: str = "top-1"


@dataclass(frozen=True)
class Provenance:
    """How an artifact was made.

    versions: package name -> version (quantune, iree-base-compiler, iree-base-runtime, torch-mlir). flags: IREE flags.
    target: as Target prints it. configuration: the QuantConfig line. model: its name. fingerprint: the digest of the
    model's weights. data: role (calibration, validation) -> fingerprint. sources: option of quantune-compile (model,
    calib, …) -> the reference given; Python objects are not among them. layers: what each layer really runs in.
    pipeline: the passes, as text. processor: what a CPU program needs to run, None for other targets. sha256: of the
    program's bytes, set by attach. measured: what a search measured, None without one. reasons: layer ->
    why it is not in integers, or in no kernel. There is no date: the same request gives the same bytes.
    """

    target: str
    configuration: str = ""
    model: str = ""
    fingerprint: str = ""
    pipeline: str = ""
    flags: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[LayerExecution, ...] = ()
    processor: Processor | None = None
    sha256: str = ""
    measured: Measured | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Provenance:
        """Read what to_json wrote; raises RunFailed that names the bad field."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RunFailed(f"the provenance is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise RunFailed(f"the provenance is a JSON {type(record).__name__}; expected an object")
        version = record.get("format")
        if type(version) is not int or not 1 <= version <= FORMAT:
            raise RunFailed(f"the provenance has format {version!r:.60}; this version reads format 1 to {FORMAT}")
        record = {name: value for name, value in record.items() if _ONCE.get(name, 0) < version}
        names = {f.name for f in fields(cls) if _SINCE.get(f.name, 1) <= version}
        if unknown := sorted(set(record) - names - {"format"}):
            raise RunFailed(f"the provenance has an unknown field {unknown[0]!r:.60}")
        if missing := sorted(names - set(record)):
            raise RunFailed(f"the provenance lacks the field {missing[0]!r}")
        return cls(**{name: _READERS.get(name, _text)(name, record[name]) for name in names})


@dataclass(frozen=True)
class Stamped:
    """The parts of an artifact's bytes. provenance is None for a plain .vmfb, which nothing vouches for."""

    program: bytes
    provenance: Provenance | None


def attach(program: bytes, provenance: Provenance) -> bytes:
    """The artifact's bytes: the program, which now announces its record, and the record with its sha256.

    Raises RunFailed for a program that IREE did not lay out as a zip archive.
    """
    program = announce(program)
    text = replace(provenance, sha256=hashlib.sha256(program).hexdigest()).to_json().encode()
    return program + text + hashlib.sha256(text).digest() + len(text).to_bytes(8, "little") + _MAGIC


def split(data: bytes, where: str = "artifact") -> Stamped:
    """The program and its provenance, all of it checked.

    Raises RunFailed, with ``where`` in the message, when a byte of either differs from what was written, and for every
    file that was cut.
    """
    magic = data[-len(_MAGIC) :]
    if magic != _MAGIC:
        # A flipped bit in the magic must not turn a checked artifact into an unchecked one.
        if sum(a == b for a, b in zip(magic, _MAGIC, strict=False)) > len(_MAGIC) // 2:
            raise RunFailed(f"{where}: the file is damaged at its end; copy or compile it again")
        check_end(data, where)
        return Stamped(data, None)
    length = int.from_bytes(data[-len(_MAGIC) - 8 : -len(_MAGIC)], "little")
    start = len(data) - _TAIL - length
    text = data[start : start + length] if start >= 0 else b""
    if hashlib.sha256(text).digest() != data[-_TAIL : -_TAIL + 32]:
        raise RunFailed(f"{where}: the record at the end of the file is damaged; copy or compile it again")
    try:
        provenance = Provenance.from_json(text)
    except RunFailed as error:
        raise RunFailed(f"{where}: {error}") from error
    program = data[:start]
    digest = hashlib.sha256(program).hexdigest()
    if digest != provenance.sha256:
        raise RunFailed(
            f"{where}: the program is damaged: its sha256 is {digest[:12]}…, expected {provenance.sha256[:12]}…; "
            "copy or compile it again"
        )
    return Stamped(program, provenance)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RunFailed(f"the provenance field {name!r:.60} is {value!r:.60}; expected text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RunFailed(
                f"the provenance field {name!r:.60} is {value!r:.60}; expected text that is Unicode"
            ) from None
    return value


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RunFailed(f"the provenance field {name!r} is {value!r:.60}; expected a number from {low:g} to {high:g}")
    return value


def _count(name: str, value: Any, low: int) -> int:
    if type(value) is not int:
        raise RunFailed(f"the provenance field {name!r} is {value!r:.60}; expected a whole number")
    return int(_number(name, value, low, _MOST))


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RunFailed(f"the provenance field {name!r} is {value!r:.60}; expected a list")
    return tuple(_text(name, item) for item in value)


def _mapping(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise RunFailed(f"the provenance field {name!r} is {value!r:.60}; expected an object")
    return {_text(name, key): _text(name, item) for key, item in value.items()}


def _layers(name: str, value: Any) -> tuple[LayerExecution, ...]:
    if not isinstance(value, list):
        raise RunFailed(f"the provenance field {name!r} is {value!r:.60}; expected a list")
    return tuple(_layer(name, item) for item in value)


def _layer(name: str, value: Any) -> LayerExecution:
    if not isinstance(value, dict) or set(value) != {f.name for f in fields(LayerExecution)}:
        raise RunFailed(f"the provenance field {name!r} has the entry {value!r:.60}; expected a layer's execution")
    texts = {key: _text(f"{name}.{key}", item) for key, item in value.items() if key != "macs"}
    return LayerExecution(macs=_count(f"{name}.macs", value["macs"], 0), **texts)


def _measured(name: str, value: Any) -> Measured | None:
    if value is None:
        return None
    if not isinstance(value, dict) or {"metric", *value} != {f.name for f in fields(Measured)}:
        raise RunFailed(f"the provenance field {name!r} is {value!r:.60}; expected what was measured or null")
    latency = value["latency_ms"]
    return Measured(
        accuracy=_number(f"{name}.accuracy", value["accuracy"], -math.inf, math.inf),
        images=_count(f"{name}.images", value["images"], 1),
        evaluation=_text(f"{name}.evaluation", value["evaluation"]),
        latency_ms=None if latency is None else _number(f"{name}.latency_ms", latency, 0, math.inf),
        threads=_count(f"{name}.threads", value["threads"], 1),
        metric=_text(f"{name}.metric", value.get("metric", "top-1")),
    )


def _processor(name: str, value: Any) -> Processor | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {f.name for f in fields(Processor)}:
        raise RunFailed(f"the provenance field {name!r} is {value!r:.60}; expected a processor or null")
    return Processor(
        _text(name, value["architecture"]), _text(name, value["name"]), _texts(f"{name}.features", value["features"])
    )


_READERS = {
    "flags": _texts,
    "versions": _mapping,
    "data": _mapping,
    "sources": _mapping,
    "reasons": _mapping,
    "layers": _layers,
    "processor": _processor,
    "measured": _measured,
}
