"""The end of a search: the artifact is written, checked against the trial that it stands for, and described.

The file is another program than the trial ran: its numbers are inside. So it answers all evaluation images once more,
in processes of its own, and only a file that answers as its trial did is called the best.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantune.errors import QuantuneError, RunFailed
from quantune.process import interrupts, places
from quantune.report.card import write_card
from quantune.runtime.artifact import Artifact
from quantune.runtime.measure import Samples
from quantune.search.result import TuningResult, TuningTrial
from quantune.search.scores import Score
from quantune.tuning import exports
from quantune.tuning.builder import Builder
from quantune.tuning.describe import describe, measured, write_reports
from quantune.tuning.evaluator import Evaluator
from quantune.tuning.notices import Notices

logger = logging.getLogger(__name__)

BEST, RECIPE, REJECTED = "best.vmfb", "best.json", "rejected.vmfb"
_UNVERIFIED = "unverified.vmfb"
_SLOWER = 1.1
"""A file that takes so much longer than the program of its trial is worth a warning."""


@dataclass(frozen=True)
class Result:
    """What a search found.

    artifact: the answer, also at ``path``; None when nothing could be measured. feasible: whether a quantized artifact
    keeps the accuracy bound; when none does, the artifact is the closest. tuning: every trial. report: what report.json
    holds. warnings: what is odd about the images, the cache or the artifact.
    """

    artifact: Artifact | None
    path: Path | None
    feasible: bool
    tuning: TuningResult
    report: Mapping[str, Any] = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> TuningTrial | None:
        """The trial behind the artifact."""
        return chosen(self.tuning)


def chosen(tuning: TuningResult) -> TuningTrial | None:
    """The trial whose artifact is handed out: the answer, or the best effort when nothing keeps the bound."""
    best = tuning.best
    if best is None or (best.config.is_float and not tuning.feasible and tuning.best_quantized is not None):
        return tuning.best_quantized or best
    return best


def finish(
    tuning: TuningResult,
    builder: Builder,
    evaluator: Evaluator,
    folder: Path,
    notices: Notices,
    on_stage: Callable[[str], None] = lambda text: None,
    *,
    notes: Sequence[str] = (),
    export: str | None = None,
) -> Result:
    """Write the artifact of the chosen trial, its recipe and the reports into ``folder``.

    notes: for the reports. export: a format of others to write it in too.
    Raises RunFailed when the file does not answer as its trial did: then it is kept as rejected.vmfb, nothing is called
    the best, and report and study are kept.
    """
    trial = chosen(tuning)
    if trial is None:
        report = write_reports(folder, tuning, builder, evaluator, None, None, notices.texts, notes=notes)
        return Result(None, None, tuning.feasible, tuning, report, notices.texts)
    on_stage("writing and verifying the artifact")
    artifact, path = None, None
    try:
        artifact = builder.artifact(trial.config, measured(evaluator, trial))
        path = _write(artifact, builder, evaluator, trial, folder)
    except KeyboardInterrupt:  # for the second time, perhaps: the report must do
        tuning = replace(tuning, interrupted=True)
    except _Rejected as reason:
        line = f"{reason}; the file is kept as {folder / REJECTED}, the measurements in the study"
        write_reports(folder, tuning, builder, evaluator, None, None, notices.texts, rejected=line, notes=notes)
        raise RunFailed(line) from reason
    if export is not None and path is not None:
        exports.write(export, builder, trial.config, path.with_suffix(exports.FORMATS[export]))
    with interrupts.held():
        report = write_reports(folder, tuning, builder, evaluator, trial, artifact, notices.texts, notes=notes)
        if path is not None:
            write_card(json.loads((folder / RECIPE).read_text(encoding="utf-8")), report, folder)
    return Result(artifact, path, tuning.feasible, tuning, report, notices.texts)


def _write(artifact: Artifact, builder: Builder, evaluator: Evaluator, trial: TuningTrial, folder: Path) -> Path:
    """Write the file and, once it is verified, its recipe; at no time do the two describe different artifacts."""
    path = artifact.save(folder / _UNVERIFIED)
    try:
        accuracy = _verified(evaluator, trial, path)
        latency = _timed(evaluator, trial, path)
        recipe = describe(builder, evaluator, trial, artifact, accuracy, latency)
        text = json.dumps(recipe, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
        with interrupts.held():
            (folder / RECIPE).unlink(missing_ok=True)
            path = path.replace(folder / BEST)
            places.write(folder / RECIPE, text, "recipe")
        return path
    except _Rejected:
        _reject(folder)
        raise
    finally:
        (folder / _UNVERIFIED).unlink(missing_ok=True)


class _Rejected(Exception):
    """The file is not what its trial measured; the text says in which."""


def _verified(evaluator: Evaluator, trial: TuningTrial, path: Path) -> float:
    """The accuracy of the file. Raises _Rejected unless it is the trial's, one image or a thousandth of it aside."""
    score = _score(trial)
    try:
        found = evaluator.verify(path)
    except RunFailed as error:
        raise _Rejected(f"the artifact of {trial.config} does not run as its trial did: {error}") from error
    metric = evaluator.metric
    allowed = 1.5 / score.images if metric.binary else 1e-3 * abs(score.accuracy)
    if abs(found - score.accuracy) > allowed:
        raise _Rejected(
            f"the artifact of {trial.config} reaches {metric.name} {metric.text(found)} on {score.images} images, its "
            f"trial reached {metric.text(score.accuracy)}: the compiled file is not what was measured"
        )
    return found


def _timed(evaluator: Evaluator, trial: TuningTrial, path: Path) -> Samples | None:
    """The latency of the file, told when it is longer than its trial's program takes beside it.

    It decides nothing: where it cannot be measured that is told, and the file stands, which answered as its trial did.
    """
    if _score(trial).latency_ms is None:
        return None
    try:
        measured_ms, samples = evaluator.time_beside(trial.config, path)
    except QuantuneError as error:
        logger.warning("the artifact could not be timed, the latency is that of its trial: %s", error)
        return None
    file_ms = samples.quartiles[1]
    if file_ms > _SLOWER * measured_ms:
        logger.warning(
            "the artifact takes %.3g ms, the program that its trial measured %.3g ms, timed side by side",
            file_ms, measured_ms,
        )  # fmt: skip
    return samples


def _score(trial: TuningTrial) -> Score:
    assert trial.score is not None
    return trial.score


def _reject(folder: Path) -> None:
    """Nothing in the folder is to look like the answer: neither the new file nor that of an earlier session."""
    (folder / _UNVERIFIED).replace(folder / REJECTED)
    for name in (BEST, RECIPE):
        earlier = folder / name
        if earlier.is_file():
            earlier.replace(folder / f"previous{earlier.suffix}")
