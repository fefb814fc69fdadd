"""Where a search measures: on this machine, a device that cannot compile, a cluster; and what it compiles for then."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from quantune.artifact.records import Processor
from quantune.cache import ArtifactCache
from quantune.cluster.runner import SCHEME, ClusterRunner
from quantune.compiler.probe import needed_processor
from quantune.compiler.targets import Target
from quantune.device.client import Device
from quantune.errors import EnvironmentFailure, UsageError
from quantune.process import memory
from quantune.runtime.devices import lacking, open_device
from quantune.runtime.engines import Runner, Timer
from quantune.runtime.host import this_host

PLACES = ("here", "device")
CLUSTERS = (SCHEME, f"{SCHEME}+tls")


@dataclass(frozen=True)
class Measuring:
    """Where programs answer and where they are timed; None stands for this machine's worker processes.

    target: what to compile for. device: which device times them, in one line; empty where this machine does.
    timed_on, counted_on: who times them and whose answers are counted, in words and with the address, for the reports.
    """

    target: Target
    runner: Runner | None = None
    timer: Timer | None = None
    device: str = ""
    timed_on: str = ""
    counted_on: str = ""

    def close(self) -> None:
        """Let go of whoever measures; more than once is once."""
        for each in (self.runner, self.timer):
            if each is not None:
                each.close()


@dataclass(frozen=True)
class Machines:
    """What is compiled for and where that is measured (see `measuring`), on how many threads, within which memory."""

    target: Target
    device: str | None = None
    evaluate_on: str | None = None
    threads: int = 1
    memory_limit: str | int | None = None

    def __post_init__(self) -> None:
        memory.check(self.memory_limit)
        if not isinstance(self.threads, int) or self.threads < 1:
            raise UsageError(f"threads {self.threads!r}: expected a whole number, 1 or more")

    def reach(self, cache: ArtifactCache) -> Measuring:
        """Reach whoever measures; whoever asks for it closes it."""
        return measuring(
            self.target, cache=cache, device=self.device, evaluate_on=self.evaluate_on, threads=self.threads
        )


def measuring(
    target: Target,
    *,
    cache: ArtifactCache,
    device: str | None = None,
    evaluate_on: str | None = None,
    threads: int = 1,
) -> Measuring:
    """Decide where to measure, and reach whoever does it.

    device: tcp://HOST:PORT of a device server; the target's ``host`` is its processor then. evaluate_on: where the
    accuracy is counted: ``here``, ``device``, or a cluster (dask://HOST:PORT); by default here where this machine can
    run the programs. Raises EnvironmentFailure, before anything is compiled, when whoever is to run them cannot.
    """
    cluster = evaluate_on if evaluate_on is not None and evaluate_on.partition("://")[0] in CLUSTERS else None
    if evaluate_on not in (None, cluster, *PLACES):
        raise UsageError(f"evaluate on '{evaluate_on}': expected {', '.join(PLACES)} or dask://HOST:PORT")
    if cluster is not None and not target.on_processor:
        raise UsageError(
            f"evaluate on {cluster}: target {target}: a cluster's workers run programs for processors only"
        )
    if device is None:
        if evaluate_on == "device":
            raise UsageError("evaluate on the device: there is none; name one, such as tcp://board:7433")
        check_measurable(target, cache)
        if cluster is None:
            return Measuring(target)
        counting = _cluster(cluster, target, cache)
        return Measuring(target, counting, counted_on=counting.place)
    there = Device(device, threads=threads)
    try:
        target, required = _agreed(target, there, cache)
        reason = _not_here(required)
        if evaluate_on == "here" and reason:
            raise EnvironmentFailure(f"target {target}: {reason}; evaluate on the device")
        elsewhere = bool(reason) or not target.on_processor  # a GPU of the same kind is here by chance only
        answers = evaluate_on == "device" or (evaluate_on is None and elsewhere)
        runner: Device | ClusterRunner | None = there if answers else None
        if cluster is not None:
            runner = _cluster(cluster, target, cache)
        counted = "" if runner is None else runner.place
        return Measuring(target, runner, there, there.identity, timed_on=there.place, counted_on=counted)
    except BaseException:
        there.close()
        raise


def device_target(target: Target, device: str, cache: ArtifactCache) -> Target:
    """What to compile for a device, where nothing is measured; EnvironmentFailure where it cannot run that."""
    with contextlib.closing(Device(device)) as there:
        return _agreed(target, there, cache)[0]


def check_measurable(target: Target, cache: ArtifactCache) -> None:
    """Raise EnvironmentFailure where programs of ``target`` cannot run on this machine, before any work is done."""
    if not target.on_processor:
        open_device(target.device())
    if reason := _not_here(needed_processor(target, cache)):
        raise EnvironmentFailure(
            f"target {target}: a search measures its programs, which are {reason}; search on such a machine or measure "
            "on one (--device), or build one configuration here with --config LINE"
        )


def _agreed(target: Target, there: Device, cache: ArtifactCache) -> tuple[Target, Processor | None]:
    """What to compile for a device, and what that needs, which the device has."""
    target = there.target(target)
    required = needed_processor(target, cache)
    there.check_target(target, required)
    return target, required


def _cluster(uri: str, target: Target, cache: ArtifactCache) -> ClusterRunner:
    return ClusterRunner(uri, required=needed_processor(target, cache, host=True))


def _not_here(required: Processor | None) -> str | None:
    """Why this machine cannot run what needs a processor, or None."""
    here = this_host()
    return required and lacking(required, here.architecture, here.features, "this machine")
