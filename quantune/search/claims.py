"""Who measures what. A trial is claimed before it is measured, and closed whatever happens.

The rule by which any number of workers share a study. A claim is one write: a running trial with its configuration and
the name of its session. The storage numbers trials one after the other, and a worker looks at the study after its claim
is written; so of two claims the later one always sees the earlier. A claim holds if no earlier one that counts is of
the same configuration, and if fewer configurations than the budget allows have an earlier one. A claim that does not
hold is withdrawn at once. One that counts may only cease to (its process dies), never begin to, so what held once
holds for good: no configuration is measured twice and no budget exceeded, without a lock.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from quantune.errors import QuantuneError, machine_lacks
from quantune.process.owner import lease, lease_is_dead
from quantune.quantization.config import QuantConfig
from quantune.search.heartbeat import BEAT, Heartbeat
from quantune.search.history import Attempt, Identity, Standing, read_attempts, review
from quantune.search.scores import Objective, Score
from quantune.search.storage import CLAIM

logger = logging.getLogger(__name__)


class Session:
    """This worker: its name, and how it tells which of the others live.

    shared: whether others may be at the same study; without that every running trial that is not of this session is of
    a process that died, since the folder's lock is ours.
    """

    def __init__(self, *, shared: bool, heartbeat: Heartbeat | None = None) -> None:
        self.name = uuid.uuid4().hex[:12]
        self.shared, self.heartbeat = shared, heartbeat
        self._held: int | None = None
        self.lease = {**lease(), "session": self.name}

    def hold(self, trial_id: int | None) -> None:
        """Give signs of life for this trial, or for none."""
        self._held = trial_id
        if self.heartbeat is not None:
            self.heartbeat.hold(trial_id)

    def is_dead(self, attempt: Attempt) -> bool:
        """Whether nobody measures a running attempt any more."""
        if attempt.session == self.name:
            return attempt.trial_id != self._held
        if not self.shared:
            return True
        # Machines may share a name: one that was started at another time may be another one.
        if attempt.lease.get("boot") == self.lease["boot"] and lease_is_dead(attempt.lease):
            return True
        return self.heartbeat is not None and self.heartbeat.watch.silent(attempt.trial_id)


class Claims:
    """The trials of one study, for one session.

    identity: equal for configurations of which one is measured. forgiven: numbers of failed trials that count for
    nothing to this session.
    """

    def __init__(
        self, study: Study, session: Session, identity: Identity, forgiven: frozenset[int] = frozenset()
    ) -> None:
        self._study, self._session, self._identity, self.forgiven = study, session, identity, forgiven

    @property
    def storage(self) -> BaseStorage:
        """Where the study lives."""
        return self._study._storage

    def attempts(self) -> list[Attempt]:
        """What the study holds now."""
        return read_attempts(self._study.get_trials(deepcopy=False))

    def claim(
        self,
        config: QuantConfig,
        params: Mapping[str, Any],
        space: Mapping[str, BaseDistribution],
        *,
        limit: int | None = None,
        marks: Mapping[str, Any] | None = None,
    ) -> Claim | None:
        """Make a trial of a configuration ours, or None where another worker was first or the budget is spent.

        limit: how many configurations may be measured. marks: Optuna's attributes of the trial, from its sampler.
        """
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions={name: space[name] for name in params},
            user_attrs={
                "config": str(config), "lease": self._session.lease, CLAIM: uuid.uuid4().hex, BEAT: 0,
            },
            system_attrs={name: value for name, value in (marks or {}).items() if not name.startswith("constraints")},
        )  # fmt: skip
        self.storage.create_new_trial(self._study._study_id, trial)
        attempts = self.attempts()
        # A storage that lost the answer to its own write may have written twice: the first one is meant.
        mine, *others = [a for a in attempts if a.frozen.user_attrs.get(CLAIM) == trial.user_attrs[CLAIM]]
        holds = self._holds(mine, attempts, limit)
        for attempt in others if holds else (mine, *others):
            self._of(attempt).drop("withdrawn", "another worker was first")
        if not holds:
            return None
        self._session.hold(mine.trial_id)
        return self._of(mine)

    def _holds(self, mine: Attempt, attempts: list[Attempt], limit: int | None) -> bool:
        earlier = self._review(a for a in attempts if a.number < mine.number)
        own = self._identity(mine.config)
        taken = [self._identity(a.config) for a in (*earlier.verdicts, *earlier.running)]
        return own not in taken and (limit is None or len(set(taken)) < limit)

    def settled(self, objective: Objective, baseline: Score | None) -> Standing:
        """What the study says now, once the trials of processes that died are closed.

        One is complete where its score was written, and without a verdict else.
        """
        attempts = self.attempts()
        dead = [a for a in attempts if a.state == "running" and self._session.is_dead(a)]
        for attempt in dead:
            claim = self._of(attempt)
            with contextlib.suppress(UpdateFinishedTrialError):  # another worker settles it too
                if attempt.score is not None:
                    claim.tell(attempt.score, objective, baseline)
                else:
                    kind = str(attempt.frozen.user_attrs.get("void", "died"))  # it may have died while it closed it
                    claim.drop(kind, "its process ended before it was measured")
        return self._review(self.attempts() if dead else attempts)

    def _of(self, attempt: Attempt) -> Claim:
        return Claim(self.storage, self._session, attempt)

    def _review(self, attempts: Any) -> Standing:
        return review(attempts, self._identity, session=self._session.name, forgiven=self.forgiven)


class Claim:
    """A trial that this session measures, or closes in place of a process that died."""

    def __init__(self, storage: BaseStorage, session: Session, attempt: Attempt) -> None:
        self._storage, self._session, self._trial_id = storage, session, attempt.trial_id
        self.config, self.number, self.closed = attempt.config, attempt.number, False

    def finish(self, score: Score, seconds: float, objective: Objective, baseline: Score | None) -> None:
        """Store a score and close the trial with it. Raises UpdateFinishedTrialError where it was taken for dead."""
        self._note("seconds", seconds)
        self._note("score", score.to_json())
        self.tell(score, objective, baseline)

    def tell(self, score: Score, objective: Objective, baseline: Score | None) -> None:
        """Close the trial with a score stored before, and its constraint where the objective has one."""
        if baseline is not None and objective.max_drop is not None and objective.metric != "accuracy":
            constraints = {"accuracy_drop": objective.shortfall(score, baseline)}
            marks = create_trial(state=TrialState.FAIL, constraints=constraints).system_attrs
            for name, value in marks.items():
                self._storage.set_trial_system_attr(self._trial_id, name, value)
        self._close(TrialState.COMPLETE, objective.value(score))

    def fail(self, reason: str, seconds: float) -> None:
        """Close the trial: its configuration cannot be measured."""
        self._note("seconds", seconds)
        self._note("reason", reason)
        self._close(TrialState.FAIL)

    def drop(self, kind: str, reason: str) -> None:
        """Close the trial without a verdict; kind: one of `quantune.search.history.VOID`."""
        with contextlib.suppress(UpdateFinishedTrialError):  # closed before, or by one who took this process for dead
            self._note("reason", reason)
            self._note("void", kind)
            self._close(TrialState.FAIL)

    def _note(self, name: str, value: object) -> None:
        self._storage.set_trial_user_attr(self._trial_id, name, value)

    def _close(self, state: TrialState, value: float | None = None) -> None:
        self._session.hold(None)
        self._storage.set_trial_state_values(self._trial_id, state, None if value is None else [value])
        self.closed = True


def is_transient(error: BaseException) -> bool:
    """Whether the machine failed, not the configuration: memory, disk, a child that was killed or took too long."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, MemoryError) or (isinstance(each, QuantuneError) and each.transient):
            return True
        if isinstance(each, OSError) and machine_lacks(each):
            return True
        each = each.__cause__ or each.__context__
    return False
