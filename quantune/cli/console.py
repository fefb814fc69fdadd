"""What the drivers print: stages and trials with a progress bar and the time left, and the tables at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from quantune import api
from quantune.artifact.records import integer_share
from quantune.cli.streams import one_line, own_stderr
from quantune.metrics import DEFAULT, METRICS, Metric
from quantune.quantization.config import QuantConfig
from quantune.runtime.artifact import Artifact
from quantune.search.progress import TuningEvent
from quantune.search.result import TuningTrial
from quantune.search.scores import Score, accuracy_difference


class Console:
    """Progress on stderr, results on stdout."""

    def __init__(self, *, quiet: bool = False) -> None:
        # Piped output has no width of its own; a table cut to 80 columns would lose the configurations.
        # What is printed may hold brackets and colons, which are no markup and no emoji.
        self._out = RichConsole(
            file=sys.stdout, highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 200
        )
        self._err = RichConsole(file=own_stderr(), highlight=False, markup=False, emoji=False, quiet=quiet)

    @contextlib.contextmanager
    def stages(self) -> Iterator[api.Progress]:
        """Show the stages of one build."""
        with self.search(None, METRICS[DEFAULT]) as display:
            yield display.progress

    @contextlib.contextmanager
    def search(self, trials: int | None, metric: Metric) -> Iterator[SearchDisplay]:
        """Show a search while it runs."""
        columns = (
            TextColumn("{task.description}", style="bold", markup=False), BarColumn(bar_width=28), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[note]}", markup=False),
        )  # fmt: skip
        bar = Progress(*columns, console=self._err, transient=False)
        display = SearchDisplay(bar, self._err, trials, metric)
        try:
            yield display
            display.finish()
        finally:
            if bar.live.is_started:  # else it would print an empty line above the error
                bar.stop()

    def show(self, result: api.Result, folder: Path) -> None:
        """The table at the end of a search, and where everything lies."""
        tuning, metric = result.tuning, result.tuning.objective.judged
        base = None if tuning.baseline is None else tuning.baseline.score
        default = next((t for t in tuning.trials if t.config == QuantConfig() and t.score is not None), None)
        table = Table(title=None, show_edge=False, pad_edge=False)
        for heading in ("", metric.name, f"{'points ' if metric.fraction else ''}against f32", "latency ms", "size MB"):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        table.add_column("configuration", overflow="fold")  # long ones break, so that no number is cut
        rows: list[tuple[str, TuningTrial | None]] = [
            ("f32", tuning.baseline),
            ("default int8", default),
            ("chosen", result.best),
        ]
        for name, trial in rows:
            if trial is not None and trial.score is not None:
                size = (
                    result.artifact.size_bytes if result.artifact and trial is result.best else trial.score.size_bytes
                )
                table.add_row(name, *_cells(trial.score, base, size, metric), trial.config.brief)
        self._out.print(table)
        self._out.print(result.report["verdict"], soft_wrap=True)
        if result.artifact is not None:
            share = integer_share(result.artifact.layers)
            self._out.print(f"{share:.1%} of the multiply-accumulates of the artifact run in integers", soft_wrap=True)
        self._out.print(f"{len(tuning.trials)} trials, stopped: {tuning.stopped}", soft_wrap=True)
        for name in ("best.vmfb", "best.onnx", "report.html"):
            if (folder / name).is_file():
                self._out.print(one_line(f"  {folder / name}"), soft_wrap=True)

    def show_artifact(self, artifact: Artifact, path: Path) -> None:
        """One line about an artifact built without a search, and its layers."""
        share = integer_share(artifact.layers)
        config = "" if artifact.config is None else artifact.config.brief
        text = (
            f"{path}: {artifact.size_bytes / 1e6:.2f} MB, {share:.1%} of the multiply-accumulates in integers, {config}"
        )
        self._out.print(one_line(text), soft_wrap=True)

    def show_export(self, path: Path, config: QuantConfig) -> None:
        """One line about a file in another format."""
        self._out.print(one_line(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {config.brief}"), soft_wrap=True)


class SearchDisplay:
    """The progress bar of a search, fed by the hooks in ``progress``."""

    def __init__(self, bar: Progress, console: RichConsole, trials: int | None, metric: Metric) -> None:
        self._bar, self._console, self._trials, self._metric = bar, console, trials, metric
        self._stage: TaskID | None = None
        self._search: TaskID | None = None
        self._training: tuple[TaskID, float, float] | None = None
        self._start = self._stage_start = time.monotonic()
        self.progress = api.Progress(
            self._on_stage,
            self._on_part,
            self._on_event,
            self._on_training,
            on_screening=self._on_part,
            on_refining=self._on_refining,
        )

    def finish(self) -> None:
        """Mark the last stage as done."""
        if self._stage is not None:
            task = self._bar.tasks[self._stage]
            self._bar.update(self._stage, completed=task.total or 1, total=task.total or 1)

    def _add(self, text: str, **options: Any) -> TaskID:
        self._bar.start()
        return self._bar.add_task(text, **options)

    def _on_stage(self, text: str) -> None:
        self.finish()
        self._stage_start = time.monotonic()
        self._stage = self._add(text, total=1, note="") if text != "searching" else None

    def _on_part(self, done: int, total: int) -> None:
        if self._stage is not None:
            self._bar.update(self._stage, completed=done, total=total)

    def _on_refining(self, done: int, total: int) -> None:
        self._on_part(done, total)
        if self._stage is not None and 0 < done <= total:
            left = (time.monotonic() - self._stage_start) / done * (total - done)
            self._bar.update(self._stage, note=f"{_duration(left)} left" if done < total else "")

    def _on_training(self, done: float, text: str) -> None:
        now = time.monotonic()
        if self._training is None:  # the first text says what is trained, and how long that takes
            self._training = self._add(text, total=100, note=""), now, done
            return
        task, start, before = self._training
        if before == 0 < done:  # one that goes on starts with what was done before
            self._training = task, now, done
        note = f"{text}  {_duration((now - start) / (done - before) * (1 - done))} left" if done > before > 0 else text
        self._bar.update(task, completed=100 * done, note=note)

    def _on_event(self, event: TuningEvent) -> None:
        if self._search is None:
            self._search = self._add("searching", total=event.total or self._trials, note="")
        if event.kind == "note":
            self._console.print(one_line(event.message))
        elif event.trial is not None and event.kind in ("finished", "failed"):
            self._console.print(_line(event.trial, self._metric, event.is_baseline), soft_wrap=True)
        best = event.best.score if event.best else None
        note = f"best {self._metric.text(best.accuracy)}" if best else ""
        if event.left_s is not None:
            note += f"  {_duration(event.left_s)} left"
        self._bar.update(self._search, completed=event.done, total=event.total or self._trials, note=note)


def _line(trial: TuningTrial, metric: Metric, is_baseline: bool) -> str:
    name = "base " if is_baseline else f"{trial.number:4d} "
    if trial.score is None:
        return one_line(f"{name} FAILED  {trial.config.brief}: {trial.reason}")
    score = trial.score
    latency = "" if score.latency_ms is None else f"{score.latency_ms:8.3f} ms"
    size = f"{score.size_bytes / 1e6:7.2f} MB"
    return f"{name} {_accuracy(score, metric):>8} {latency} {size}  {trial.seconds:5.1f} s  {trial.config.brief}"


def _cells(score: Score, base: Score | None, size: int, metric: Metric) -> tuple[str, str, str, str]:
    against = ""
    if base is not None and base is not score:
        against = accuracy_difference(score, base).text(metric).removesuffix(" points")
    latency = "" if score.latency_ms is None else f"{score.latency_ms:.3f}"
    return _accuracy(score, metric), against, latency, f"{size / 1e6:.2f}"


def _accuracy(score: Score, metric: Metric) -> str:
    """The accuracy; ~ before what was estimated from the first images, because the trial stopped early."""
    return ("" if score.stopped_of is None else "~") + metric.text(score.accuracy)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
