"""The search as one call: the study is opened, and `quantune.search.loop` measures until a budget is spent.

What the study models. Its value is the metric itself (accuracy, milliseconds or bytes) and, when the objective is
latency or size, the accuracy bound is an Optuna constraint ("accuracy_drop", kept when 0 or less). So the sampler
learns accuracy and latency each by its own model and multiplies the worth of an improvement by the odds of keeping the
bound, rather than one penalised number that has a cliff in it; Optuna's TPE and genetic samplers honour the same
constraint.

What is never lost. Scores are written into the trial before the trial is closed. A trial that was running when its
process died or was interrupted is measured again by the next session, or by another worker; everything finished is
kept. What is proposed depends on the finished trials and the seed alone, so that an interrupted search measures the
same configurations in the same order as one that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from optuna.distributions import BaseDistribution

from quantune.errors import UsageError
from quantune.quantization import space as level1
from quantune.quantization.config import QuantConfig
from quantune.search.features import FeatureHook
from quantune.search.heartbeat import Heartbeat
from quantune.search.history import DamagedTrial
from quantune.search.loop import Evaluate, Loop, Retime, Task
from quantune.search.progress import Budget, TuningEvent
from quantune.search.result import TuningResult
from quantune.search.sampler import Prior
from quantune.search.scores import Objective
from quantune.search.stopping import Floor
from quantune.search.store import DATABASE, Store, quarantine
from quantune.search.strategies import Strategy, describe_space
from quantune.search.transfer import PastStudy

FLOAT_BASELINES = (QuantConfig(precision="f32"),)
FORMAT = "3"


def tune(
    evaluate: Evaluate,
    folder: Path,
    *,
    objective: Objective | None = None,
    fingerprint: Mapping[str, str] | None = None,
    sampler: str = "xgboost",
    seed: int = 0,
    max_trials: int | None = None,
    time_budget_s: float | None = None,
    baselines: Sequence[QuantConfig] = FLOAT_BASELINES,
    first: Sequence[QuantConfig] = (QuantConfig(),),
    features: FeatureHook | None = None,
    prior: Prior | None = None,
    past: Sequence[PastStudy] = (),
    retime: Retime | None = None,
    set_floor: Callable[[Floor | None], None] | None = None,
    finalists: int = 4,
    on_event: Callable[[TuningEvent], None] | None = None,
    space: Mapping[str, BaseDistribution] | None = None,
    identity: Callable[[QuantConfig], str] = str,
    storage: str | None = None,
    retry_failed: bool = False,
) -> TuningResult:
    """Search `space` for the best configuration under `objective`; the study lives in `folder` and is continued.

    evaluate: measures one configuration; any exception but UsageError and EnvironmentFailure fails that trial only, and
    one of the machine (`quantune.search.claims.is_transient`) not for good.
    fingerprint: what must not change between sessions (model, data, target, flags). baselines: measured before the
    search, f32 among them; in a search for accuracy the others after it, and only if nothing quantized keeps the bound.
    first: measured before the sampler is asked. past: studies of other models, which guide the search for accuracy.
    retime: re-measures the finalists' latencies (ms) side by side. set_floor: hears before each trial what it has to
    reach; a score of fewer images than f32 has was stopped early: the sampler learns from it, and it is never the
    answer. storage: an Optuna storage URL, or grpc://HOST:PORT, instead of the folder's own file; any number of workers
    may then search together, and max_trials is what all of them measure. retry_failed: measure again what failed or was
    given up before this call.
    identity: equal for configurations that compute the same, of which one is measured. A KeyboardInterrupt ends the
    search and is returned as ``interrupted=True``. Raises UsageError when the folder belongs to another search, is in
    use, or holds a damaged study; QuantuneError when f32 cannot be measured.
    """
    objective = objective or Objective()
    space = dict(level1.distributions() if space is None else space)
    strategy = Strategy(
        sampler, space, seed=seed, features=features, prior=prior, past=past,
        identity=lambda params: identity(level1.from_params(params)),
    )  # fmt: skip
    belongs_to = {
        **(fingerprint or {}),
        "objective": f"{objective.metric}, largest drop {objective.max_drop}",
        "space": describe_space(space),
        "format": FORMAT,
    }
    task = Task(
        evaluate=evaluate, objective=objective, strategy=strategy, space=space, identity=identity,
        budget=Budget(max_trials, time_budget_s), first=tuple(first), on_event=on_event, set_floor=set_floor,
        retry_failed=retry_failed,
    )  # fmt: skip
    loop = Loop(task)
    with Store(Path(folder), belongs_to, objective.direction, url=storage, notice=loop.note) as store:
        try:
            if not store.shared:
                return loop.run(store, None, list(baselines), retime, finalists)
            assert store.storage is not None
            with Heartbeat(store.storage.backend, store.study_ids) as heartbeat:
                return loop.run(store, heartbeat, list(baselines), retime, finalists)
        except DamagedTrial as error:
            path = store.folder / DATABASE
            store.close()
            if storage is not None:
                raise UsageError(f"{store.where}: {error}") from error
            raise quarantine(path, str(error)) from error
