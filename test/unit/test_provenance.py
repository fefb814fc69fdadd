from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantune.compiler.inspect import LayerExecution, Processor
from quantune.compiler.provenance import FORMAT, Provenance, attach, split
from quantune.errors import RunFailed

PROGRAM = b"PK\x03\x04" + bytes(range(256)) * 3
RECORD = Provenance(
    target="cpu:host",
    configuration="precision=int8",
    model="net “x”",
    fingerprint="abc",
    pipeline="a,b",
    flags=("--x", "--y=1"),
    versions={"quantune": "0.1.0"},
    data={"calibration": "123"},
    layers=(LayerExecution("features.0", "conv", 1234, "i8", "main_dispatch_0"),),
    processor=Processor("x86_64", "znver5", ("avx2",)),
)
ARTIFACT = attach(PROGRAM, RECORD)


def test_round_trip() -> None:
    stamped = split(ARTIFACT)
    assert stamped.program == PROGRAM
    assert stamped.provenance is not None
    assert len(stamped.provenance.sha256) == 64
    assert replace(stamped.provenance, sha256="") == RECORD
    assert Provenance.from_json(RECORD.to_json()) == RECORD


def test_plain_program_has_no_provenance() -> None:
    assert split(PROGRAM) == split(PROGRAM, "x")
    assert split(PROGRAM).provenance is None
    assert split(b"").program == b""


@given(st.integers(0, len(ARTIFACT) * 8 - 1))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    damaged = bytearray(ARTIFACT)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RunFailed, match=r"x\.vmfb: .*damaged"):
        split(bytes(damaged), "x.vmfb")


@given(st.integers(1, len(ARTIFACT) - 1))
def test_a_cut_file_is_never_taken_for_the_whole(length: int) -> None:
    try:
        stamped = split(ARTIFACT[:-length])
    except RunFailed:
        return
    assert stamped.provenance is None  # IREE itself refuses a program that is too short


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is a JSON list; expected an object"),
        ("{}", f"has format None; this version reads format {FORMAT}"),
        (json.dumps({"format": 99}), "has format 99"),
        (json.dumps({"format": FORMAT, "zzz": 1}), "unknown field 'zzz'"),
        (json.dumps({"format": FORMAT, "target": "cpu"}), "lacks the field 'configuration'"),
        (json.dumps(json.loads(RECORD.to_json()) | {"model": 3}), "field 'model' is 3; expected text"),
        (json.dumps(json.loads(RECORD.to_json()) | {"flags": "x"}), "field 'flags' is 'x'; expected a list"),
    ],
)
def test_reader_messages(text: str, message: str) -> None:
    with pytest.raises(RunFailed, match=message):
        Provenance.from_json(text)
