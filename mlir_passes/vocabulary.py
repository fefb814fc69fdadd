"""Tables of objects by name, which other modules may add to."""

from __future__ import annotations

from typing import Protocol, TypeVar


class Named(Protocol):
    """What has a name."""

    @property
    def name(self) -> str:
        """Under which it is asked for."""
        ...


T = TypeVar("T", bound=Named)


class Vocabulary(dict[str, T]):
    """Objects by name, in the order in which they were entered. what: what one is called where a name is taken."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def register(self, item: T) -> T:
        """Enter an object; raises ValueError for a name that is taken."""
        if item.name in self:
            raise ValueError(f"{self._what} '{item.name}' is there already")
        self[item.name] = item
        return item
