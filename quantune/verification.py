"""Is this file the artifact it says it is, and does it still do what was measured? One check at a time.

Nothing of the file is run before its bytes and its record are found whole; then only in child processes.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantune.artifact.provenance import Measured, Provenance
from quantune.artifact.records import integer_share
from quantune.compiler.targets import parse
from quantune.data.base import hashed_order
from quantune.data.materialized import materialize
from quantune.data.sources import Reference
from quantune.data.splits import Split, label_shape
from quantune.device.address import SCHEME
from quantune.device.client import Device
from quantune.errors import EnvironmentFailure, RunFailed, UsageError
from quantune.metrics import DEFAULT, METRICS, Metric
from quantune.metrics.base import value_of
from quantune.process import scratch
from quantune.runtime.artifact import Artifact, load
from quantune.runtime.benchmark import benchmark, compare
from quantune.runtime.child import Worker
from quantune.runtime.devices import check_processor
from quantune.runtime.engines import LocalRunner

TIMEOUT_S = 1200.0
HELD, FAILED, LACKING, SKIPPED = "ok", "FAILED", "LACKING", "skipped"


@dataclass(frozen=True)
class Check:
    """What became of one check. outcome: HELD, FAILED, LACKING (this machine cannot tell) or SKIPPED."""

    name: str
    outcome: str
    text: str


@dataclass(frozen=True)
class Wanted:
    """What an artifact is to keep; None is not asked for.

    sha256: of the file. evaluation: a reference to labelled images. max_drop: the largest loss of top-1 against the
    record, as a fraction; by default one image. min_accuracy: the least top-1, for an artifact whose record has none.
    max_latency_ms: the largest median. min_integers: the least share of integer multiplications. device, threads: where
    to run it: a driver or URI of this machine, or tcp://HOST:PORT of a device server. timeout_s: for one run here, by
    default TIMEOUT_S; a device server has a limit of its own.
    """

    sha256: str | None = None
    evaluation: str | None = None
    max_drop: float | None = None
    min_accuracy: float | None = None
    max_latency_ms: float | None = None
    min_integers: float | None = None
    threads: int = 1
    device: str | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_drop", "min_accuracy", "min_integers"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name.replace('_', '-')} {value}: expected a fraction from 0 to 1")
        for name in ("max_latency_ms", "timeout_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name.rpartition('_')[0].replace('_', '-')} {value}: expected a time, more than 0")
        if self.threads < 1:
            raise UsageError(f"threads {self.threads}: expected 1 or more")
        digits = self.sha256
        if digits is not None and not (len(digits) == 64 and set(digits.lower()) <= set("0123456789abcdef")):
            raise UsageError(f"sha256 '{digits}': expected 64 hexadecimal digits, as sha256sum prints them")
        if self.is_elsewhere and self.timeout_s is not None:
            raise UsageError(f"timeout: device {self.device} has a limit of its own (--timeout there)")
        if self.evaluation is None and (self.max_drop is not None or self.min_accuracy is not None):
            raise UsageError("max-drop and min-accuracy need images: give eval")

    @property
    def is_elsewhere(self) -> bool:
        """Whether a device server runs it."""
        return self.device is not None and self.device.startswith(SCHEME)


class Place(Protocol):
    """A machine that an artifact is run on."""

    def check(self, artifact: Artifact, record: Provenance) -> str:
        """What the artifact needs and this has, in words. Raises EnvironmentFailure where it lacks something."""
        ...

    def loads(self, artifact: Artifact) -> tuple[str, list[str]]:
        """Load the program; where that was, and the shapes of what it takes."""
        ...

    def run(self, artifact: Artifact, images: Path, count: int) -> NDArray[np.floating]:
        """The results on the first ``count`` images of an .npy file."""
        ...

    def median_ms(self, artifact: Artifact) -> float:
        """The median latency."""
        ...


@dataclass(frozen=True)
class _Here:
    """This machine."""

    wanted: Wanted

    @property
    def _timeout_s(self) -> float:
        return TIMEOUT_S if self.wanted.timeout_s is None else self.wanted.timeout_s

    def check(self, artifact: Artifact, record: Provenance) -> str:
        needed = record.processor
        if needed is None or not artifact.device.startswith("local-"):
            return f"none is named: it runs on {artifact.device}"
        check_processor(needed, str(artifact.path))
        return f"{needed.name}, {needed.architecture}: this machine has all its features"

    def loads(self, artifact: Artifact) -> tuple[str, list[str]]:
        with Worker(device=artifact.device, threads=self.wanted.threads, timeout_s=self._timeout_s) as worker:
            takes = worker.request({"job": "signature", "program": str(artifact.path)})["inputs"]
        return artifact.device, takes

    def run(self, artifact: Artifact, images: Path, count: int) -> NDArray[np.floating]:
        runner = LocalRunner(device=artifact.device, timeout_s=self._timeout_s)
        with contextlib.closing(runner):
            return runner.run(_path(artifact), None, images, 0, count)

    def median_ms(self, artifact: Artifact) -> float:
        wanted = self.wanted
        return benchmark(artifact, threads=wanted.threads, device=wanted.device, timeout_s=self._timeout_s).median_ms


@dataclass(frozen=True)
class _There:
    """A device server."""

    device: Device

    def check(self, artifact: Artifact, record: Provenance) -> str:
        needed, target, there = record.processor, parse(record.target), f"device {self.device.identity}"
        self.device.check_target(target, needed)
        if needed is None:
            return f"none is named: it runs on {there}"
        return f"{needed.name}, {needed.architecture}: {there}, has all its features"

    def loads(self, artifact: Artifact) -> tuple[str, list[str]]:
        return self.device.name, self.device.signature(_path(artifact))

    def run(self, artifact: Artifact, images: Path, count: int) -> NDArray[np.floating]:
        return self.device.run(_path(artifact), None, images, 0, count)

    def median_ms(self, artifact: Artifact) -> float:
        return compare([artifact], threads=self.device.threads, bench=self.device).timings[0].median_ms


def _path(artifact: Artifact) -> Path:
    assert artifact.path is not None
    return artifact.path


def verify(path: Path | str, wanted: Wanted) -> Iterator[Check]:
    """Check an artifact's file, one thing after the other; what cannot be tried after a failure is not.

    The file and its record are checked here, whoever runs it. Raises UsageError where the file or the images cannot be
    read, or a device server refuses the token.
    """
    if wanted.evaluation is not None:
        Reference.parse(wanted.evaluation)
    if not wanted.is_elsewhere:
        yield from _checks(Path(path), wanted, _Here(wanted))
        return
    assert wanted.device is not None
    with contextlib.closing(Device(wanted.device, threads=wanted.threads)) as device:
        yield from _checks(Path(path), wanted, _There(device))


def _checks(path: Path, wanted: Wanted, place: Place) -> Iterator[Check]:
    try:
        artifact = load(path, device=None if wanted.is_elsewhere else wanted.device, threads=wanted.threads)
    except RunFailed as error:
        yield Check("file", FAILED, str(error).removeprefix(f"{path}: "))
        return
    yield _file(artifact, wanted)
    record = artifact.provenance
    if record is None:
        yield Check("record", FAILED, "there is none: a .vmfb of another origin, which nothing vouches for")
        return
    made = record.versions.get("quantune", "of an unknown version")
    yield Check("record", HELD, f"{record.model or 'a model'} for {record.target}, made by quantune {made}")
    steps: list[Callable[[], Check | None]] = [
        lambda: Check("processor", HELD, place.check(artifact, record)),
        lambda: _program(artifact, place),
        lambda: _integers(artifact, record, wanted),
        lambda: _accuracy(artifact, record, wanted, place),
        lambda: _latency(artifact, record, wanted, place),
    ]
    for name, step in zip(("processor", "program", "integers", "accuracy", "latency"), steps, strict=True):
        check = _tried(name, step, str(path))
        if check is not None:
            yield check
        if check is not None and check.outcome != HELD and name in ("processor", "program"):
            return  # it cannot run here


def worst(checks: list[Check]) -> str:
    """The outcome of all checks together."""
    outcomes = {check.outcome for check in checks}
    return next((each for each in (FAILED, LACKING) if each in outcomes), HELD)


def _tried(name: str, step: Callable[[], Check | None], where: str) -> Check | None:
    try:
        return step()
    except EnvironmentFailure as error:
        return Check(name, LACKING, str(error).removeprefix(f"{where}: "))
    except RunFailed as error:
        return Check(name, FAILED, str(error).removeprefix(f"{where}: "))


def _file(artifact: Artifact, wanted: Wanted) -> Check:
    """The digest of the file, against what was asked for and what lies beside it."""
    assert artifact.path is not None
    beside = artifact.path.with_name("best.json") if artifact.path.name == "best.vmfb" else None
    expected = {"the given": wanted.sha256.lower() if wanted.sha256 else None, "best.json's": _recorded(beside)}
    for whose, digest in expected.items():
        if digest is not None and digest != artifact.sha256:
            return Check("file", FAILED, f"its sha256 is {artifact.sha256}, {whose} {digest:.64}")
    sources = [whose for whose, digest in expected.items() if digest is not None]
    compared = f", {' and '.join(sources)}" if sources else "; there is none to compare it with"
    return Check("file", HELD, f"{artifact.size_bytes} bytes, sha256 {artifact.sha256}{compared}")


def _recorded(recipe: Path | None) -> str | None:
    """The digest that best.json has; None where there is no such file, or it is of an earlier version."""
    if recipe is None or not recipe.is_file():
        return None
    try:
        value = json.loads(recipe.read_bytes())
    except (OSError, ValueError, RecursionError):
        return "is unreadable"
    digest = value.get("file_sha256") if isinstance(value, dict) else "is unreadable"
    return digest if digest is None or isinstance(digest, str) else "is unreadable"


def _program(artifact: Artifact, place: Place) -> Check:
    where, takes = place.loads(artifact)
    return Check("program", HELD, f"loads on {where} and takes {', '.join(takes)}".replace("=1", ""))


def _integers(artifact: Artifact, record: Provenance, wanted: Wanted) -> Check:
    """The share of integer multiplications, as recorded, of functions that are all in the program."""
    rows = record.layers
    missing = [row.dispatch for row in rows if not artifact.has_function(row.dispatch)]
    if missing:
        return Check("integers", FAILED, f"the record names '{missing[0]}', which the program has not")
    share, count = integer_share(rows), sum(row.macs for row in rows)
    text = f"{share:.1%} of {count} multiply-accumulates, in {len(rows)} functions that the program has"
    config = artifact.config
    quantized = config is not None and not config.is_float
    least = wanted.min_integers
    if least is not None and share < least:
        return Check("integers", FAILED, f"{text}; {least:.1%} are asked for")
    if least is None and quantized and rows and not share:
        return Check("integers", FAILED, f"{text}, though its configuration is {config}")
    return Check("integers", HELD, text)


def _accuracy(artifact: Artifact, record: Provenance, wanted: Wanted, place: Place) -> Check | None:
    if wanted.evaluation is None:
        return None if record.measured is None else Check("accuracy", SKIPPED, "no images were given (eval)")
    known = record.measured
    if known is None and wanted.min_accuracy is None:
        return Check(
            "accuracy", FAILED, "the record has none (made without a search): give min-accuracy to compare with"
        )
    name = DEFAULT if known is None else known.metric
    metric = METRICS.get(name)  # never a function: the record is the file's word, and would name what is run here
    if metric is None or metric.compared:
        why = "the f32 network is not at hand" if metric else "only the metrics of quantune are counted here"
        return Check("accuracy", SKIPPED, f"the record's is {name:.60}: {why}")
    images = _images(wanted.evaluation, known)
    count = len(images)
    found = _counted(artifact, images, place, metric)
    text = (
        f"{metric.text(found)} of {count} images" if metric.fraction else f"{name} {metric.text(found)}, {count} images"
    )
    if known is not None:
        recorded = metric.text(known.accuracy)
        if images.fingerprint != known.evaluation:
            return Check("accuracy", FAILED, f"{text}; the record's {recorded} are of {known.images} others")
        allowed = wanted.max_drop
        if allowed is None:
            allowed = 1 / count if metric.binary else 1e-3 * abs(known.accuracy)
        text += f", recorded {recorded}"
        loss = known.accuracy - found if metric.higher else found - known.accuracy
        if loss > allowed + 1e-12:
            return Check("accuracy", FAILED, f"{text}: a loss of more than {metric.text(allowed)}")
    if wanted.min_accuracy is not None and metric.better(wanted.min_accuracy, found):
        return Check("accuracy", FAILED, f"{text}; {metric.text(wanted.min_accuracy)} are asked for")
    return Check("accuracy", HELD, text)


def _images(reference: str, known: Measured | None) -> Split:
    """The images that the record is about, where they can be found in the set; else all that the reference names.

    A search may have evaluated on a part of a set that it also calibrated on: the first ones in the hashed order.
    """
    parsed = Reference.parse(reference)
    source = parsed.open("evaluation")
    named = Split(source, tuple(range(len(source))))
    if known is None or named.fingerprint == known.evaluation:
        return named
    whole = parsed.open("evaluation", limited=False)
    if len(whole) < known.images:
        return named
    part = Split(whole, tuple(sorted(hashed_order(len(whole))[: known.images])))
    return part if part.fingerprint == known.evaluation else named


def _counted(artifact: Artifact, images: Split, place: Place, metric: Metric) -> float:
    """The metric of an artifact on images."""
    with scratch.folder("verify") as folder:
        written = materialize(images, folder, "images", any_labels=not metric.binary)
        outputs = place.run(artifact, written.images, len(images))
    if outputs.ndim < 2 or not np.isfinite(outputs).all():
        raise RunFailed("its results are not finite numbers, a row for each image")
    try:
        metric.check(outputs.shape[1:], label_shape(images))
    except UsageError as error:
        raise RunFailed(str(error)) from error
    return value_of(metric, metric.rows(outputs, written.labels, None))


def _latency(artifact: Artifact, record: Provenance, wanted: Wanted, place: Place) -> Check | None:
    if wanted.max_latency_ms is None:
        return None
    found = place.median_ms(artifact)
    text = f"{found:.3f} ms on {wanted.threads} thread{'s' if wanted.threads > 1 else ''}"
    if record.measured is not None and record.measured.latency_ms is not None:
        text += f", recorded {record.measured.latency_ms:.3f} ms on {record.measured.threads}"
    held = found <= wanted.max_latency_ms
    return Check("latency", HELD if held else FAILED, f"{text}; {wanted.max_latency_ms:g} ms are allowed")
