"""The rule by which workers share a study, and the signs of life by which they take over from each other."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from tuner_bench import F32, SMALL, Killed, Recorder, killed_at, measure
from tuner_bench import quick_disk as quick_disk

from quantune.errors import UsageError
from quantune.process.owner import lease
from quantune.quantization.config import QuantConfig
from quantune.search import claims as module
from quantune.search import heartbeat, storage
from quantune.search.claims import Claim, Claims, Session
from quantune.search.heartbeat import Watch
from quantune.search.history import read_attempts, review
from quantune.search.scores import Objective
from quantune.search.storage import Patient, make_study
from quantune.search.store import study_name
from quantune.search.tuner import tune

pytestmark = pytest.mark.usefixtures("quick_disk")

A, B, C = (QuantConfig(calib=n) for n in (1, 2, 3))
GOAL = Objective()


class Shared:
    """A study in memory and the workers at it."""

    def __init__(self) -> None:
        self.storage = InMemoryStorage()
        make_study(self.storage, "shared", "maximize")

    def worker(self, host: str = "") -> Claims:
        session = Session(shared=True)
        if host:
            session.lease = {**session.lease, "host": host, "boot": host}
        return Claims(optuna.load_study(study_name="shared", storage=self.storage), session, str)

    def states(self) -> list[str]:
        trials = optuna.load_study(study_name="shared", storage=self.storage).trials
        return [a.state for a in read_attempts(trials)]


def claimed(worker: Claims, config: QuantConfig, limit: int | None = None) -> Claim | None:
    return worker.claim(config, {}, {}, limit=limit)


def finished(worker: Claims, config: QuantConfig) -> None:
    claim = claimed(worker, config)
    assert claim is not None
    claim.finish(measure(config), 0.1, GOAL, None)


def test_the_first_claim_of_a_configuration_holds() -> None:
    shared = Shared()
    one, two = shared.worker("a"), shared.worker("b")
    mine = claimed(one, A)
    assert mine is not None
    assert claimed(two, A) is None
    assert claimed(two, B) is not None
    mine.drop("interrupted", "Ctrl-C")
    assert claimed(two, A) is not None
    assert shared.states() == ["interrupted", "withdrawn", "running", "running"]


def test_the_budget_counts_what_runs_and_what_was_measured_but_no_attempt_without_a_verdict() -> None:
    shared = Shared()
    one, two = shared.worker("a"), shared.worker("b")
    finished(one, A)
    running = claimed(two, B, limit=2)
    assert running is not None
    assert claimed(one, C, limit=2) is None
    assert claimed(one, C, limit=3) is not None
    running.drop("transient", "no memory")
    assert shared.states() == ["complete", "transient", "withdrawn", "running"]
    assert claimed(two, B, limit=2) is None  # C has the place now
    failed = claimed(two, B, limit=3)
    assert failed is not None
    failed.fail("no kernel", 0.1)
    assert claimed(one, QuantConfig(calib=9), limit=3) is None


def test_the_dead_are_told_from_the_living(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Shared()
    away, here, gone = shared.worker("a"), shared.worker(), shared.worker()
    gone._session.lease = {**gone._session.lease, "started": "1"}
    for worker, config in ((away, A), (here, B), (gone, C)):
        assert claimed(worker, config) is not None
    watcher = shared.worker()
    assert [a.config for a in watcher.settled(GOAL, None).again] == [C]
    assert shared.states() == ["running", "running", "died"]


def test_another_machine_of_the_same_name_is_not_judged_by_its_processes() -> None:
    shared = Shared()
    clone = shared.worker()
    clone._session.lease = {**lease(), "boot": "another start", "pid": 4_000_000, "session": "x"}
    assert claimed(clone, A) is not None
    watcher = shared.worker()
    assert len(watcher.settled(GOAL, None).running) == 1


def test_a_trial_without_a_lease_is_left_to_the_one_that_makes_it() -> None:
    """As a worker of another kind would leave it between two writes."""
    shared = Shared()
    study = optuna.load_study(study_name="shared", storage=shared.storage)
    trial = study.ask()
    trial.set_user_attr("config", str(A))
    worker = shared.worker()
    assert [a.config for a in worker.settled(GOAL, None).running] == [A]
    assert study.trials[0].state == TrialState.RUNNING


def test_a_score_written_by_one_that_died_is_kept() -> None:
    shared = Shared()
    gone = shared.worker()
    claim = claimed(gone, A)
    assert claim is not None
    claim._note("score", measure(A).to_json())
    gone._session.lease["started"] = "1"
    trial_id = shared.storage.get_all_trials(0)[0]._trial_id
    shared.storage.set_trial_user_attr(trial_id, "lease", gone._session.lease)
    (trial,) = shared.worker().settled(GOAL, None).trials
    assert trial.score == measure(A)


def test_a_write_whose_answer_was_lost_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the storage itself too: the second trial is withdrawn."""
    shared = Shared()
    worker = shared.worker()
    real = shared.storage.create_new_trial

    def twice(study_id: int, template: optuna.trial.FrozenTrial | None = None) -> int:
        real(study_id, template)
        return real(study_id, template)

    monkeypatch.setattr(shared.storage, "create_new_trial", twice)
    claim = claimed(worker, A)
    assert claim is not None
    claim.finish(measure(A), 0.1, GOAL, None)
    assert shared.states() == ["complete", "withdrawn"]

    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    patient = Patient(shared.storage, "memory", "memory", patience_s=60.0, notice=lambda text: None)

    def deaf(study_id: int, template: optuna.trial.FrozenTrial | None = None) -> int:
        monkeypatch.setattr(shared.storage, "create_new_trial", real)
        real(study_id, template)
        raise optuna.exceptions.StorageInternalError("connection lost")

    monkeypatch.setattr(shared.storage, "create_new_trial", deaf)
    worker._study._storage = patient
    claim = claimed(worker, B)
    assert claim is not None
    assert shared.states() == ["complete", "withdrawn", "running"]
    close = shared.storage.set_trial_state_values

    def closed(trial_id: int, state: TrialState, values: list[float] | None = None) -> bool:
        monkeypatch.setattr(shared.storage, "set_trial_state_values", close)
        close(trial_id, state, values)
        raise optuna.exceptions.StorageInternalError("connection lost")

    monkeypatch.setattr(shared.storage, "set_trial_state_values", closed)
    claim.finish(measure(B), 0.1, GOAL, None)
    assert shared.states() == ["complete", "withdrawn", "complete"]


def test_what_nobody_measures_any_more_is_not_waited_for() -> None:
    """A trial of this very session that it does not know of."""
    shared = Shared()
    worker = shared.worker()
    assert claimed(worker, A) is not None
    worker._session.hold(None)
    assert not worker.settled(GOAL, None).running


def test_marks_that_stand_still_tell_who_is_gone() -> None:
    watch = Watch(beat_s=5, grace_s=60)
    for second in range(0, 60, 5):
        watch.look({1: second, 2: 0}, second)
        assert not watch.silent(2)
    watch.look({1: 60, 2: 0}, 60)
    assert (watch.silent(1), watch.silent(2), watch.silent(3)) == (False, True, False)
    watch.look({1: 65, 2: 1}, 65)
    assert not watch.silent(2)  # it goes on


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """The database was away, or this machine slept."""
    watch = Watch(beat_s=5, grace_s=60)
    for second in (0, 1000, 2000, 3000, 4000):
        watch.look({1: "same"}, second)
    assert not watch.silent(1)


def test_retries_follow_attempts_and_names_follow_the_search() -> None:
    shared = Shared()
    worker = shared.worker()
    for config in (B, A):
        claim = claimed(worker, config)
        assert claim is not None
        claim.drop("interrupted", "Ctrl-C")
    assert [a.config for a in review(worker.attempts(), str).again] == [B, A]
    names = {study_name({"model": m, "target": t, "versions": v}) for m in "ab" for t in "xy" for v in "12"}
    assert len(names) == 4
    assert all(name.startswith("quantune ") for name in names)


def together(url: str, folder: Path, count: int, **options: object) -> list[object]:
    """Workers in threads of this process, started at once; what each returned or raised."""
    results: list[object] = []
    barrier = threading.Barrier(count)

    def work(number: int) -> None:
        barrier.wait()
        try:
            results.append(tune(storage=url, folder=folder / str(number), **options))  # type: ignore[arg-type]
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_workers_started_at_once_on_a_fresh_database(tmp_path: Path) -> None:
    seen: list[QuantConfig] = []

    def evaluate(config: QuantConfig):
        seen.append(config)
        time.sleep(0.01)
        return measure(config)

    url = f"sqlite:///{tmp_path}/shared.db"
    results = together(url, tmp_path, 3, evaluate=evaluate, space=SMALL, sampler="random", max_trials=8)
    assert [type(result).__name__ for result in results] == ["TuningResult"] * 3, results
    assert len(seen) == len(set(seen)) == 9
    assert len({tuple(t.config for t in result.trials) for result in results}) == 1  # type: ignore[attr-defined]
    assert {len(result.trials) for result in results} == {8}  # type: ignore[attr-defined]


def test_a_worker_elsewhere_that_died_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It held f32; the one that waits says so, and takes over when the marks stand still."""
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.02)
    monkeypatch.setattr(heartbeat, "GRACE_S", 0.4)
    url, notes = f"sqlite:///{tmp_path}/shared.db", []
    own = lease()
    monkeypatch.setattr(module, "lease", lambda: {**own, "host": "elsewhere", "boot": "other", "pid": 12})
    with killed_at(monkeypatch, 1), pytest.raises(Killed):
        tune(measure, tmp_path / "a", space=SMALL, max_trials=2, storage=url)
    monkeypatch.setattr(module, "lease", lambda: own)
    evaluate = Recorder()
    result = tune(
        evaluate, tmp_path / "b", space=SMALL, max_trials=2, storage=url, on_event=lambda e: notes.append(e.message)
    )
    assert evaluate.seen[0] == F32
    assert len(result.trials) == 2
    assert [note for note in notes if "is being measured by process 12 on elsewhere" in note]


def test_a_worker_that_differs_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    tune(measure, tmp_path / "a", space=SMALL, max_trials=1, storage=url, fingerprint={"model": "m", "processor": "p"})
    with pytest.raises(UsageError, match=r"processor=p, now processor=q; use the same processor .*another database"):
        tune(measure, tmp_path / "b", space=SMALL, storage=url, fingerprint={"model": "m", "processor": "q"})
    other = tune(measure, tmp_path / "c", space=SMALL, max_trials=1, storage=url, fingerprint={"model": "n"})
    assert len(other.trials) == 1
