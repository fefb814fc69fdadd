"""What the tool owes its users, each obligation with how often a test tried it and how often it held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Obligation:
    """One promise in words, and what became of every attempt to break it."""

    name: str
    count: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def held(self) -> int:
        """How many of the tries it held."""
        return self.count - len(self.broken)

    def tried(self, ok: bool, what: str = "") -> None:
        """Records one try, with `what` was done if the promise was broken; the test goes on and fails at its end."""
        self.count += 1
        if not ok:
            self.broken.append(what or f"try {self.count}")

    @contextmanager
    def trial(self, what: str) -> Iterator[None]:
        """Records one try: it holds if the body raises nothing; what the body raises is recorded and raised on."""
        try:
            yield
        except BaseException as error:
            self.tried(False, f"{what}: {str(error).strip().partition(chr(10))[0] or type(error).__name__}")
            raise
        self.tried(True)


def table(obligations: list[Obligation]) -> list[str]:
    """The lines of the table: obligation, tried, held; below it what was broken."""
    width = max(len("obligation"), *(len(each.name) for each in obligations))
    lines = [f"{'obligation':<{width}}  tried   held"]
    lines += [f"{each.name:<{width}}  {each.count:>5}  {each.held:>5}" for each in obligations]
    return lines + [f"broken: {each.name}: {what}" for each in obligations for what in each.broken]
