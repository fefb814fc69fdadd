"""Signs of life in a shared study: what a worker measures is marked again and again, and others watch the marks.

Optuna has a heartbeat too. It belongs to its own loop (`Study.optimize`) and to databases reached directly, not to its
gRPC proxy, and compares the database's clock with the worker's, so the marks here are plain numbers in the trial: a
worker counts as gone when a number stood still for `GRACE_S` while the watcher was looking. No two clocks are compared,
and time in which the database was away, or the watcher slept, does not count.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

logger = logging.getLogger(__name__)

BEAT_S = 5.0
"""The time between two marks, and between two looks at those of others."""
GRACE_S = 60.0
"""A worker whose mark stood still for this long, as seen by a look every `BEAT_S`, is gone."""
BEAT = "beat"
"""The user attribute that holds the mark."""


class Watch:
    """How long each running trial's mark has stood still, as far as it was looked at."""

    def __init__(self, *, beat_s: float, grace_s: float) -> None:
        self._beat_s, self._grace_s = beat_s, grace_s
        self._lock = threading.Lock()
        self._seen: dict[int, tuple[object, float]] = {}  # of a trial: its mark, and the seconds that it stood still
        self._looked: float | None = None

    def look(self, marks: Mapping[int, object], now: float) -> None:
        """Take note of the marks of all running trials at a time (s, of any steady clock)."""
        with self._lock:
            # What went on between two looks that lie far apart is not known: more than one beat may have been missed.
            passed = 0.0 if self._looked is None else min(now - self._looked, self._beat_s)
            self._looked = now
            before, self._seen = self._seen, {}
            for trial_id, mark in marks.items():
                known, still = before.get(trial_id, (mark, -passed))
                self._seen[trial_id] = (mark, still + passed if known == mark else 0.0)

    def silent(self, trial_id: int) -> bool:
        """Whether the worker behind a trial is gone."""
        with self._lock:
            return self._seen.get(trial_id, (None, 0.0))[1] >= self._grace_s


class Heartbeat:
    """A thread that marks the trial held here and watches those of others. Use it as a context manager.

    studies: ids of the studies to watch. storage: asked directly; while it is away there is nothing to see.
    """

    def __init__(self, storage: BaseStorage, studies: Iterable[int]) -> None:
        self._storage, self._studies = storage, tuple(studies)
        self._beat_s = BEAT_S
        self.watch = Watch(beat_s=BEAT_S, grace_s=GRACE_S)
        self._held: int | None = None
        self._count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quantune-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * self._beat_s)

    def hold(self, trial_id: int | None) -> None:
        """Mark this trial from now on, or none."""
        self._held = trial_id

    def _run(self) -> None:
        while True:
            try:
                self._mark()
                self._look()
            except Exception as error:  # the database is away: the search itself says so when it needs it
                logger.debug("no heartbeat: %s", type(error).__name__)
            if self._stop.wait(self._beat_s):
                return

    def _mark(self) -> None:
        trial_id = self._held
        if trial_id is None:
            return
        self._count += 1
        try:
            self._storage.set_trial_user_attr(trial_id, BEAT, self._count)
        except UpdateFinishedTrialError:
            logger.debug("trial %d is closed", trial_id)

    def _look(self) -> None:
        running: list[FrozenTrial] = []
        for study in self._studies:
            running += self._storage.get_all_trials(study, deepcopy=False, states=(TrialState.RUNNING,))
        self.watch.look({t._trial_id: t.user_attrs.get(BEAT) for t in running}, time.monotonic())
