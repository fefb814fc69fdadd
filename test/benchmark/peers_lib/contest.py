"""The contest: all contestants on one model, in turn."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from quantune.errors import RunFailed

from .contestants import Process
from .models import Stable
from .values import Contestant, Row, ratio, round_order, sqnr_db


def contest(
    name: str, wanted: list[tuple[str, str]], threads: list[int], rounds: int, seconds: float
) -> dict[str, Any]:
    """Everything measured on one model: rows, seconds of compilation, and why a contestant is missing."""
    started = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="quantune-peers-") as temporary:
        folder = Path(temporary)
        stable = Stable(name, folder)
        processes, absent = [], {}
        for engine, precision in wanted:
            try:
                file = stable.file(engine, precision)
            except Exception as error:  # whatever stops one contestant, the others run
                absent[f"{engine} {precision}"] = (str(error).strip() or type(error).__name__).splitlines()[0]
                continue
            contestants = (Contestant(engine, precision, count, file) for count in threads)
            processes += [Process(c, folder / f"{engine}.{precision}.{c.threads}.log") for c in contestants]

        def drop(process: Process, error: RunFailed) -> None:
            absent[str(process.contestant)] = str(error)
            processes.remove(process)
            process.close()

        try:
            reference = stable.reference()
            quality = {}
            for process in list(processes):
                try:
                    quality[process.contestant] = _quality(process, reference, folder)
                except RunFailed as error:
                    drop(process, error)
            for number in range(rounds):
                for process in [processes[index] for index in round_order(len(processes), number)]:
                    try:
                        process.slice(seconds)
                    except RunFailed as error:
                        drop(process, error)
        finally:
            for process in processes:
                process.close()
    ours = {(p.contestant.precision, p.contestant.threads): p.rounds for p in processes if _is_ours(p.contestant)}
    rows = [_row(name, process, ours, quality[process.contestant]) for process in processes]
    return {"rows": rows, "seconds": stable.seconds, "absent": absent, "load": (started, os.getloadavg()[0])}


def _quality(process: Process, reference: np.ndarray, folder: Path) -> tuple[float, float]:
    output = folder / "logits.npy"
    process.request({"images": str(folder / "images.npy"), "output": str(output)})
    logits = np.load(output)
    return sqnr_db(reference, logits), float((logits.argmax(1) == reference.argmax(1)).mean())


def _is_ours(contestant: Contestant) -> bool:
    return contestant.engine == "quantune"


def _row(name: str, process: Process, ours: dict[tuple[str, int], list[float]], quality: tuple[float, float]) -> Row:
    c, rounds = process.contestant, process.rounds
    mine = ours.get((c.precision, c.threads))
    low, middle, high = np.percentile(rounds, (25, 50, 75))
    peak, before = process.memory
    return Row(
        name, c.engine, c.precision, c.threads, float(middle), float(high - low), process.minimum, tuple(rounds),
        ratio(mine, rounds) if mine and not _is_ours(c) else None, peak / 1e6, (peak - before) / 1e6, *quality,
    )  # fmt: skip
