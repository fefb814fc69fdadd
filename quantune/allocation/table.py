"""What a user asks for: a size budget as text, and scores and proposers by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from quantune.allocation.amp import Alone, from_list
from quantune.allocation.base import Proposer, Scorer
from quantune.allocation.controls import Parameters, Random, greedy, uniform
from quantune.allocation.interactions import Clado, Gram
from quantune.allocation.orthogonality import Orthogonality
from quantune.allocation.output_error import OutputNorm
from quantune.allocation.solve import optimal
from quantune.allocation.sqnr import Sqnr
from quantune.errors import UsageError, hint

SCORERS: dict[str, Scorer] = {
    "sqnr": Sqnr(),
    "gram": Gram(),
    "clado": Clado(),
    "alone": Alone(),
    "output-error": OutputNorm(),
    "relative-error": OutputNorm(relative=True),
    "orthogonality": Orthogonality(),
    "ompq-ptq": Orthogonality(form="ptq"),
    "ompq-qat": Orthogonality(form="qat"),
    "parameters": Parameters(),
}
"""By the name in --score."""

PROPOSERS: dict[str, Proposer] = {
    "optimal": optimal,
    "greedy": greedy,
    "list": from_list,
    "uniform": uniform,
    "random": Random(),
}
"""By the name in --propose: what makes an allocation of scores."""

DEFAULT_SCORE, DEFAULT_PROPOSER = "sqnr", "optimal"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(B|kB|KB|MB|GB|KiB|MiB|GiB|x)", re.ASCII)
_UNITS = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip

T = TypeVar("T")


def parse_size(size: str | int, eight_bits: int) -> int:
    """Bytes of a size such as ``1.2MB``, or of a share such as ``0.5x`` of the bytes that eight bits take.

    A number is bytes already. Raises UsageError for anything else, and for a size of zero.
    """
    text = f"{size}B" if type(size) is int else str(size)
    found = _SIZE.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"size budget '{size}': expected a size such as 1.2MB, or 0.5x of the weights' eight bits")
    number, unit = float(found[1]), found[2]
    return int(number * (eight_bits if unit == "x" else _UNITS[unit]))


def scorer(name: str) -> Scorer:
    """The scorer of a name; raises UsageError for an unknown one."""
    return _named("score", name, SCORERS)


def proposer(name: str) -> Proposer:
    """The proposer of a name; raises UsageError for an unknown one."""
    return _named("proposer", name, PROPOSERS)


def _named(what: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise UsageError(f"{what} '{name}': expected one of {', '.join(table)}{hint(name, table)}")
    return table[name]
