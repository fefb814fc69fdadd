from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantune.artifact.container import ANNOUNCEMENT
from quantune.artifact.provenance import FORMAT, Measured, Provenance, Stamped, attach, split
from quantune.artifact.records import LayerExecution, Processor
from quantune.errors import RunFailed


def archive(*sizes: int) -> bytes:
    """What IREE lays out: stored entries in a zip archive, here with the bytes 0, 1, 2 …"""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for number, size in enumerate(sizes):
            file.writestr(f"{number}.fb", bytes(i % 256 for i in range(size)))
    return buffer.getvalue()


PROGRAM = archive(700, 5)
MEASURED = Measured(0.75, 400, "ee", 1.5, 2)
RECORD = Provenance(
    target="cpu:host",
    configuration="precision=int8",
    model="net “x”",
    fingerprint="abc",
    pipeline="a,b",
    flags=("--x", "--y=1"),
    versions={"quantune": "0.1.0"},
    data={"calibration": "123"},
    sources={"model": "builtin:x", "calib": "npz:é.npz"},
    layers=(LayerExecution("features.0", "conv", 1234, "i8", "main_dispatch_0"),),
    processor=Processor("x86_64", "znver5", ("avx2",)),
    measured=MEASURED,
)
ARTIFACT = attach(PROGRAM, RECORD)
BARE = b"\x20\0\0\0\x10\0\0\0IREE" + bytes(28)
"""A program as IREE writes it when told not to make a zip archive of it."""


def test_round_trip() -> None:
    stamped = split(ARTIFACT)
    assert stamped.program.startswith(PROGRAM[:-2])
    assert zipfile.ZipFile(io.BytesIO(stamped.program)).comment == ANNOUNCEMENT
    assert stamped.provenance is not None
    assert len(stamped.provenance.sha256) == 64
    assert replace(stamped.provenance, sha256="") == RECORD
    assert Provenance.from_json(RECORD.to_json()) == RECORD


def test_plain_program_has_no_provenance() -> None:
    assert split(PROGRAM) == split(PROGRAM, "x")
    assert split(PROGRAM).provenance is None
    assert split(BARE) == Stamped(BARE, None)


def test_older_records_are_read() -> None:
    record = {**json.loads(RECORD.to_json()), "format": 1, "created": "2026-01-01T00:00:00+00:00"}
    del record["measured"], record["sources"], record["reasons"]
    text = json.dumps(record | {"sha256": hashlib.sha256(PROGRAM).hexdigest()}).encode()
    old = PROGRAM + text + hashlib.sha256(text).digest() + len(text).to_bytes(8, "little") + ARTIFACT[-16:]
    read = split(old).provenance
    assert read is not None
    assert replace(read, sha256="") == replace(RECORD, measured=None, sources={})
    with pytest.raises(RunFailed, match="unknown field 'created'"):
        Provenance.from_json(json.dumps(json.loads(RECORD.to_json()) | {"created": ""}))


def test_a_record_of_format_2_is_read_without_reasons() -> None:
    record = json.loads(replace(RECORD, reasons={"a": "why"}).to_json()) | {"format": 2}
    del record["reasons"]
    assert Provenance.from_json(json.dumps(record)) == replace(RECORD, reasons={})


def test_only_an_archive_can_carry_a_record() -> None:
    for program in (b"", BARE, PROGRAM[:-1], PROGRAM + b"x", split(ARTIFACT).program):
        with pytest.raises(RunFailed, match="not laid out as a zip archive"):
            attach(program, RECORD)


@given(st.integers(0, len(ARTIFACT) * 8 - 1))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    damaged = bytearray(ARTIFACT)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RunFailed, match=r"x\.vmfb: .*damaged"):
        split(bytes(damaged), "x.vmfb")


@pytest.mark.parametrize("whole", [ARTIFACT, PROGRAM, attach(archive(0, 1), RECORD)])
def test_every_cut_is_noticed(whole: bytes) -> None:
    for length in range(len(whole)):
        with pytest.raises(RunFailed, match=r"^x\.vmfb: .*(cut|damaged|missing)"):
            split(whole[:length], "x.vmfb")


@pytest.mark.parametrize("whole", [ARTIFACT, PROGRAM])
@pytest.mark.parametrize("more", [b"\0", b"\n", b"PK\x05\x06", ARTIFACT[-100:-1]])
def test_bytes_that_follow_are_noticed(whole: bytes, more: bytes) -> None:
    with pytest.raises(
        RunFailed, match=r"x\.vmfb: (.* bytes follow the program and are no record|.* missing|.* damaged)"
    ):
        split(whole + more, "x.vmfb")


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    for candidate in (data, PROGRAM + data, ARTIFACT + data, data + ARTIFACT[-60:]):
        with contextlib.suppress(RunFailed):
            split(candidate)
    with contextlib.suppress(RunFailed):
        Provenance.from_json(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(json.loads(RECORD.to_json()))), json_values)
def test_wrong_field_values(name: str, value: object) -> None:
    record = json.loads(RECORD.to_json()) | {name: value}
    with contextlib.suppress(RunFailed):
        Provenance.from_json(json.dumps(record))


def _measured(**changes: object) -> str:
    record = json.loads(RECORD.to_json())
    return json.dumps(record | {"measured": {**record["measured"], **changes}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is a JSON list; expected an object"),
        ("{}", f"has format None; this version reads format 1 to {FORMAT}"),
        (json.dumps({"format": 99}), "has format 99"),
        (json.dumps({"format": True}), "has format True"),
        (json.dumps(json.loads(RECORD.to_json()) | {"format": 1}), "unknown field 'measured'"),
        (json.dumps(json.loads(RECORD.to_json()) | {"model": "\ud800"}), "expected text that is Unicode"),
        (json.dumps(json.loads(RECORD.to_json()) | {"data": {"\ud800": ""}}), "expected text that is Unicode"),
        (_measured(accuracy="1"), r"'measured.accuracy' is '1'; expected a number"),
        (_measured(accuracy=float("nan")), r"'measured.accuracy' is nan; expected a number"),
        (_measured(images=0), r"'measured.images' is 0; expected a number from 1"),
        (_measured(threads=1.0), r"'measured.threads' is 1.0; expected a whole number"),
        (_measured(latency_ms="1"), r"'measured.latency_ms' is '1'; expected a number"),
        (_measured(more=1), "expected what was measured or null"),
        (json.dumps({"format": FORMAT, "zzz": 1}), "unknown field 'zzz'"),
        (json.dumps({"format": FORMAT, "target": "cpu"}), "lacks the field 'configuration'"),
        (json.dumps(json.loads(RECORD.to_json()) | {"model": 3}), "field 'model' is 3; expected text"),
        (json.dumps(json.loads(RECORD.to_json()) | {"flags": "x"}), "field 'flags' is 'x'; expected a list"),
    ],
)
def test_reader_messages(text: str, message: str) -> None:
    with pytest.raises(RunFailed, match=message):
        Provenance.from_json(text)
