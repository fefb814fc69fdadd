"""What the trials of a search have to agree in, so that they may be compared with each other."""

from __future__ import annotations

import hashlib

from quantune.artifact.targets import host_identity
from quantune.metrics import DEFAULT
from quantune.runtime.host import processor_name
from quantune.tuning.evaluator import Evaluator
from quantune.versions import versions


def study_identity(evaluator: Evaluator) -> dict[str, str]:
    """What a study belongs to, by name; a study made under another value of any of these is not continued.

    The processor is among them whatever is sought: it decides the program where the target is this machine, every
    latency, and the last bits of the calibration, which runs on it for all targets.
    """
    builder = evaluator.builder
    assert builder.calib is not None
    target = builder.target
    return {
        "model": f"{builder.model.name} {builder.model.fingerprint[:16]}",
        "calibration images": builder.calib.fingerprint[:16],
        "evaluation images": evaluator.split.fingerprint[:16],
        "target": str(target),
        "processor": f"{processor_name()} {hashlib.sha256(host_identity().encode()).hexdigest()[:8]}",
        **({"metric": evaluator.metric.identity()} if evaluator.metric.name != DEFAULT else {}),
        **({"device": evaluator.device} if evaluator.device else {}),
        "kernels": target.kernels() or "none",
        "flags": " ".join(target.flags()),
        "threads": str(evaluator.threads),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
