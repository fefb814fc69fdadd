"""Runtime devices: how many workers, and names that are no device."""

from __future__ import annotations

import pytest

from quantune.errors import UsageError
from quantune.runtime.devices import open_device, workers


@pytest.mark.parametrize(
    ("threads", "processors", "expected"), [(1, 1, 1), (1, 2, 1), (2, 2, 3), (2, 8, 2), (8, 8, 9), (4, 2, 4)]
)
def test_one_worker_more_where_every_processor_is_used(threads: int, processors: int, expected: int) -> None:
    assert workers(threads, processors) == expected


@pytest.mark.parametrize(
    ("device", "threads", "message"),
    [
        ("gpu", 1, "device 'gpu': expected one of local-sync"),
        ("local-sync", 2, "device local-sync runs on one thread, not 2"),
        ("local-task", 0, "threads=0: expected 1 or more"),
    ],
)
def test_what_is_no_device(device: str, threads: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_device(device, threads=threads)
