"""What a search leaves behind, for people and for machines: recipe, per-layer table, report.json and report.html."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlir_passes.network import FLOAT, INPUT, Network, Node
from quantune.artifact.provenance import Measured
from quantune.numerics import affine
from quantune.quantization.config import QuantConfig
from quantune.quantization.constants import Constant
from quantune.quantization.plan import QuantizationPlan, bits_of
from quantune.report.report import build_report, verdict, write_report
from quantune.runtime.artifact import Artifact
from quantune.runtime.host import processor_name
from quantune.runtime.measure import Samples
from quantune.search.result import TuningResult, TuningTrial
from quantune.search.stopping import ERROR
from quantune.tuning.builder import Builder
from quantune.versions import versions

if TYPE_CHECKING:
    from quantune.tuning.evaluator import Evaluator


def describe(
    builder: Builder,
    evaluator: Evaluator,
    trial: TuningTrial,
    artifact: Artifact,
    verified: float,
    latency: Samples | None = None,
) -> dict[str, Any]:
    """The recipe of an artifact: everything needed to make it again, and what it measured.

    verified: the accuracy of the file, which is another program than the trial's. latency: of the file.
    """
    assert trial.score is not None
    provenance = artifact.provenance
    assert provenance is not None
    return {
        "configuration": str(trial.config),
        "model": provenance.model,
        "model_fingerprint": provenance.fingerprint,
        "input_shape": list(builder.model.input_shape),
        "target": provenance.target,
        "pipeline": provenance.pipeline,
        "flags": list(provenance.flags),
        "versions": dict(provenance.versions),
        "calibration_images": {} if builder.calib is None else _split(builder.calib),
        "evaluation_images": _split(evaluator.split),
        "file_sha256": artifact.sha256,
        "program_sha256": provenance.sha256,
        "size_bytes": artifact.size_bytes,
        "metric": evaluator.metric.name,
        "accuracy": trial.score.accuracy,
        "accuracy_of_the_file": verified,
        "latency_ms": trial.score.latency_ms,
        "latency_of_the_file_ms": None if latency is None else latency.quartiles[1],
        "latency_percentiles_of_the_file_ms": None if latency is None else _percentiles(latency),
        "threads": evaluator.threads,
        "timed_on": evaluator.timed_on,
        "counted_on": evaluator.counted_on,
        "rebuild": rebuild_command(builder, trial),
        "rebuild_exactly": _how_to_rebuild(builder),
    }


def _percentiles(latency: Samples) -> dict[str, float]:
    """Of the calls of the file, and how many there were."""
    return {"50": latency.quartiles[1], "90": latency.tail[0], "99": latency.tail[1], "calls": latency.calls}


def measured(evaluator: Evaluator, trial: TuningTrial) -> Measured | None:
    """What a trial measured on all evaluation images, for the artifact's record; None where it was stopped early."""
    score, split = trial.score, evaluator.split
    if score is None or score.images != len(split):
        return None
    return Measured(
        score.accuracy, score.images, split.fingerprint, score.latency_ms, evaluator.threads, evaluator.metric.name
    )


def layer_table(network: Network, artifact: Artifact, plan: QuantizationPlan | None) -> list[dict[str, Any]]:
    """A row for each layer, with what the program runs it in, and for all that is in f32 or in no kernel: why."""
    executed = {row.layer: row for row in artifact.layers}
    reasons = {} if artifact.provenance is None else artifact.provenance.reasons
    rows = []
    for node in network.nodes:
        if node.traits.weighted:
            row = executed.get(node.layer)
            ran = "unknown" if row is None else row.precision
            entry: dict[str, Any] = {
                "name": node.name,
                "kind": _kind(node.kind, node.groups, node.shape[1]),
                "executed": ran,
                "macs": node.macs,
            }
            if plan is not None and node.name in plan.weights and node.weight is not None:
                entry["weight_bits"] = bits_of(plan.weights[node.name])
                entry["activation_bits"] = bits_of(plan.activations[node.inputs[0]])
                used = plan.constants.get(node.name, Constant()).weight
                entry["sqnr_db"] = _weight_sqnr(node.weight, plan.weights[node.name], used)
            asked = artifact.config is not None and artifact.config.bits.of(node.name).is_float
            if why := _why(plan, node, ran, reasons.get(node.layer, ""), asked=asked):
                entry["why"] = why
            rows.append(entry)
        elif node.kind == FLOAT and plan is not None:
            rows.append(
                {
                    "name": node.name,
                    "kind": node.detail,
                    "executed": "f32",
                    "macs": 0,
                    "why": "no integer form of this operation",
                }
            )
        elif node.kind not in (INPUT, FLOAT) and (why := reasons.get(node.layer)) is not None:
            executed_in = "f32" if plan is None or why.startswith("in f32") else "i8"
            rows.append({"name": node.name, "kind": node.kind, "executed": executed_in, "macs": 0, "why": why})
    return rows


def write_reports(
    folder: Path,
    tuning: TuningResult,
    builder: Builder,
    evaluator: Evaluator,
    trial: TuningTrial | None,
    artifact: Artifact | None,
    warnings: Sequence[str] = (),
    *,
    rejected: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write report.json and report.html; returns the record with its verdict.

    rejected: why the file of the best trial is not handed out. notes: what else is to be told of the search.
    """
    plan = None if trial is None else builder.plan(trial.config)
    layers = [] if artifact is None else layer_table(builder.model.network, artifact, plan)
    command = "" if trial is None else rebuild_command(builder, trial)
    report = build_report(
        tuning, model=builder.model.name, target=str(builder.target), default=QuantConfig(), layers=layers,
        environment=environment(builder, evaluator), rebuild=[command] if command else [],
        notes=[*notes, *_notes(builder, evaluator, plan), *_stopped(tuning, evaluator)], warnings=warnings,
        rejected=rejected,
    )  # fmt: skip
    write_report(report, folder)
    return {**report.model_dump(mode="json"), "verdict": verdict(report)}


def rebuild_command(builder: Builder, trial: TuningTrial) -> str:
    """The command line that makes a trial's artifact again; empty where model or images were Python objects."""
    return shlex.join(builder.origin.command(trial.config, str(builder.target)))


def _how_to_rebuild(builder: Builder) -> str:
    """How the whole file is made again, byte for byte."""
    if not builder.origin.objects:
        return "quantune-compile --like best.vmfb -o again.vmfb"
    given = ", ".join(f"{name}=..." for name in builder.origin.objects)
    return f"quantune.rebuild('best.vmfb', {given}) in Python, which checks the fingerprints of what it is given"


def environment(builder: Builder, evaluator: Evaluator) -> dict[str, str]:
    """Where and with what everything was measured."""
    return {
        "processor": processor_name(),
        **{name: where for name, where in _elsewhere(evaluator).items() if where != processor_name()},
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "threads": str(evaluator.threads),
        **{f"peak memory, {phase}": size for phase, size in builder.programs.peaks.rows().items()},
        "flags": " ".join(builder.target.flags()),
        "calibration": "none" if builder.calib is None else f"{builder.calib.source.name}, {len(builder.calib)} images",
        "evaluation": f"{evaluator.split.source.name}, {len(evaluator.split)} images",
        **versions(),
    }


def _elsewhere(evaluator: Evaluator) -> dict[str, str]:
    return {"timed on": evaluator.timed_on, "accuracy counted on": evaluator.counted_on}


def _notes(builder: Builder, evaluator: Evaluator, plan: QuantizationPlan | None) -> list[str]:
    notes: list[str] = []
    if builder.calib is not None and len(builder.calib) < 10_000:
        notes.append(f"calib=10000 used all {len(builder.calib)} calibration images there are")
    if builder.calib is not None and len(builder.calib) < 1000:
        notes.append(f"calib=1000 used all {len(builder.calib)} calibration images there are")
    if not builder.target.on_processor:
        notes.append("the calibration ran on the CPU")
    if plan is not None and plan.is_narrow:
        sizes = [(node.weight.size, plan.weights[node.name]) for node in builder.model.network.layers
                 if node.weight is not None and node.name in plan.weights]  # fmt: skip
        packed = sum(-(-size * bits_of(params) // 8) for size, params in sizes)
        plain = sum(size for size, _ in sizes)
        notes.append(
            f"quantized weights are stored packed in {packed:,} bytes, {packed / plain:.3f} of what eight bits take"
        )
    if plan is not None:
        notes.extend(plan.notes)
    return notes


def _stopped(tuning: TuningResult, evaluator: Evaluator) -> list[str]:
    """What to know about trials that were stopped early."""
    total = len(evaluator.split)
    short = [t for t in tuning.trials if t.score is not None and t.score.images < total]
    if not short:
        return []
    return [
        f"{len(short)} of {len(tuning.trials)} trials were stopped before all {total} images, once they surely fell "
        f"behind (a trial that keeps up is stopped with a probability of at most {ERROR:g}): their accuracy is an "
        "estimate from the images they have, and they are neither the answer nor among the trials that no other beats"
    ]


def _split(split: Any) -> dict[str, Any]:
    return {"source": split.source.name, "count": len(split), "fingerprint": split.fingerprint}


def _kind(kind: str, groups: int, channels: int) -> str:
    if kind == "conv" and groups > 1:
        return "depthwise" if groups == channels else "grouped conv"
    return kind


def _why(plan: QuantizationPlan | None, node: Node, ran: str, reason: str, *, asked: bool) -> str:
    """Why a layer is in f32, or in integers without a kernel; empty where neither is so. asked: by the bits."""
    if not ran.startswith("f"):
        return reason
    if plan is None:
        return "; ".join(filter(None, ("nothing is quantized", reason)))
    if asked:
        return "the configuration leaves it in f32 (bits=f32)"
    if node.name not in plan.weights:
        return "the first and the last layer stay f32 (mixed)"
    return reason or "quantized, but the compiler runs it in float"


def _weight_sqnr(weight: np.ndarray, params: affine.QuantParams, refined: np.ndarray | None) -> float:
    """How well a layer keeps its weight in dB. refined: what it computes with where that is not the weight rounded."""
    exact = weight.astype(np.float64)  # the squares of large weights are no f32
    used = weight if refined is None else refined
    error = exact - affine.dequantize(affine.quantize(used, params), params)
    signal, noise = float(np.square(exact).sum()), float(np.square(error).sum())
    return round(10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30))), 2)
