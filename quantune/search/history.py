"""Trials as the study stores them, and what they say of the search: what is measured, what runs, what is to be retried.

A stored trial is an attempt to measure one configuration. It ends with a score, with a failure of its own, or without
saying anything of its configuration (`VOID`): then the configuration is tried again, and the attempt counts for nothing
but the two limits below.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from quantune.errors import QuantuneError, UsageError
from quantune.quantization.config import QuantConfig
from quantune.search.result import TuningTrial
from quantune.search.scores import Score

VOID = ("died", "interrupted", "stopped", "transient", "withdrawn")
"""How an attempt ends that says nothing: its process died, it was interrupted, the search ended with an error that
every trial would meet, the machine failed it (memory, disk, a killed child), or another worker was first."""
MAX_DEATHS = 5
"""A configuration whose process died this often is given up: it may be what kills it."""
MAX_TRANSIENT = 2
"""How often one session tries a configuration that the machine fails; the next session tries again."""

_STATES = {TrialState.RUNNING: "running", TrialState.COMPLETE: "complete", TrialState.FAIL: "failed"}

Identity = Callable[[QuantConfig], Hashable]


class DamagedTrial(QuantuneError):
    """A stored trial cannot be read."""


@dataclass(frozen=True)
class Attempt:
    """A stored trial.

    state: running, complete, failed or one of `VOID`. score: of a complete one, and of a running one whose process had
    measured it. lease: who measures it. frozen: as Optuna keeps it.
    """

    number: int
    config: QuantConfig
    state: str
    score: Score | None
    reason: str | None
    seconds: float
    lease: Mapping[str, Any]
    frozen: FrozenTrial

    @property
    def trial_id(self) -> int:
        """The storage's name for it."""
        return self.frozen._trial_id

    @property
    def session(self) -> object:
        """Which session made it."""
        return self.lease.get("session")


@dataclass(frozen=True)
class Standing:
    """What a study says.

    trials: the verdicts, one a configuration, in the order in which they were proposed; verdicts: the attempts behind
    them. running: attempts not yet closed, of other configurations. again: of what was tried without a verdict.
    """

    trials: tuple[TuningTrial, ...]
    verdicts: tuple[Attempt, ...]
    running: tuple[Attempt, ...]
    again: tuple[Attempt, ...]


def read_attempts(trials: Iterable[FrozenTrial]) -> list[Attempt]:
    """The attempts among a study's trials, in order; trials that others put there are left out."""
    return [_read(t) for t in trials if t.state in _STATES and "config" in t.user_attrs]


def review(
    attempts: Iterable[Attempt], identity: Identity, *, session: object = None, forgiven: frozenset[int] = frozenset()
) -> Standing:
    """What the attempts say of each configuration (of those with one identity), as the given session sees it.

    forgiven: numbers of failed attempts that shall count for nothing.
    """
    groups: dict[Hashable, list[Attempt]] = {}
    for attempt in sorted(attempts, key=lambda a: a.number):
        groups.setdefault(identity(attempt.config), []).append(attempt)
    settled: list[tuple[Attempt, TuningTrial]] = []
    running: list[Attempt] = []
    again: list[Attempt] = []
    for group in groups.values():
        found = _verdict([a for a in group if a.number not in forgiven], session)
        if found is not None:
            settled.append(found)
        elif at_work := [a for a in group if a.state == "running"]:
            running += at_work
        elif tried := [a for a in group if a.state != "withdrawn"]:
            again.append(tried[0])
    settled.sort(key=lambda pair: pair[0].number)
    return Standing(
        trials=tuple(trial for _, trial in settled),
        verdicts=tuple(attempt for attempt, _ in settled),
        running=tuple(sorted(running, key=lambda a: a.number)),
        again=tuple(sorted(again, key=lambda a: a.number)),
    )


def _verdict(group: list[Attempt], session: object) -> tuple[Attempt, TuningTrial] | None:
    """What became of a configuration, from its attempts in order; None while nothing did."""
    for state in ("complete", "failed"):
        for attempt in group:
            if attempt.state == state:
                return attempt, _trial(attempt, state, attempt.reason)
    if any(a.state == "running" for a in group):
        return None
    died = [a for a in group if a.state == "died"]
    if len(died) >= MAX_DEATHS:
        reason = f"its process ended {len(died)} times before it was measured; given up, --retry-failed tries again"
        return died[-1], _trial(died[-1], "lost", reason)
    failed = [a for a in group if a.state == "transient" and a.session == session]
    if len(failed) >= MAX_TRANSIENT:
        return failed[-1], _trial(failed[-1], "failed", f"{failed[-1].reason}; the same command tries it again")
    return None


def _trial(attempt: Attempt, state: str, reason: str | None) -> TuningTrial:
    score = attempt.score if state == "complete" else None
    reason = None if state == "complete" else reason
    return TuningTrial(attempt.number, attempt.config, state, score, reason, attempt.seconds)


def _read(frozen: FrozenTrial) -> Attempt:
    attrs, state = frozen.user_attrs, _STATES[frozen.state]
    seconds, lease = attrs.get("seconds", 0.0), attrs.get("lease")
    if not isinstance(seconds, int | float):
        raise DamagedTrial(f"trial {frozen.number}: seconds is {seconds!r}")
    try:
        config = QuantConfig.parse(str(attrs["config"]))
    except UsageError as error:
        raise DamagedTrial(f"trial {frozen.number}: {error}") from error
    if state == "failed" and "void" in attrs:
        state = str(attrs["void"])
        if state not in VOID:
            raise DamagedTrial(f"trial {frozen.number}: void is {state!r}")
    measured = state == "complete" or (state == "running" and "score" in attrs)
    return Attempt(
        number=frozen.number,
        config=config,
        state=state,
        score=_score(frozen) if measured else None,
        reason=None if attrs.get("reason") is None else str(attrs["reason"]),
        seconds=float(seconds),
        lease=lease if isinstance(lease, Mapping) else {},
        frozen=frozen,
    )


def _score(frozen: FrozenTrial) -> Score:
    try:
        return Score.from_json(frozen.user_attrs.get("score"))
    except (ValueError, TypeError) as error:
        raise DamagedTrial(f"trial {frozen.number}: {error}") from error
