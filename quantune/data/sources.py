"""References to image sets, and the sources they name.

builtin:shapes, builtin:digits      options split=train|calibration|evaluation
imagefolder:DIR                     options resize, crop, mean, std, interpolation
npz:FILE                            arrays images [n, c, h, w] and labels [n]
PACKAGE.MODULE:FACTORY              called without arguments; its result has a length and gives (image, label) by index

Options follow a question mark, ``imagefolder:val?resize=232&crop=224``; every kind also takes ``count=N``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantune.data.base import ImageSource, Subset, hashed_order, options_of, whole_number
from quantune.data.builtin import open_builtin
from quantune.data.files import ImageFolder, Npz
from quantune.data.items import Items
from quantune.data.text import one_line, printable
from quantune.errors import UsageError, hint
from quantune.user_code import call_factory

ROLES = ("calibration", "evaluation")
_EXPECTED = "expected builtin:shapes, builtin:digits, imagefolder:DIR, npz:FILE or PACKAGE.MODULE:FACTORY"


@dataclass(frozen=True)
class Reference:
    """A parsed reference: kind is one of ``SOURCES`` or "factory", target what follows the colon."""

    text: str
    kind: str
    target: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read ``KIND:TARGET?option=value&option=value``. Raises UsageError that names the bad part."""
        head, _, tail = text.partition("?")
        kind, colon, target = head.partition(":")
        where = f"data '{printable(text)}'"
        if not colon or not target or not kind:
            raise UsageError(f"{where}: {_EXPECTED}{_suggestion(head)}")
        options: dict[str, str] = {}
        for item in filter(None, tail.split("&")):
            key, equals, value = item.partition("=")
            if not equals or not key:
                raise UsageError(f"{where}: option '{printable(item)}' is not of the form name=value")
            if key in options:
                raise UsageError(f"{where}: option '{printable(key)}' is given twice")
            options[key] = value
        if kind in SOURCES:
            return cls(text, kind, target, tuple(options.items()))
        names = [*kind.split("."), target]
        if not all(name.isidentifier() for name in names):
            raise UsageError(f"{where}: {_EXPECTED}{hint(kind, SOURCES)}")
        return cls(text, "factory", f"{kind}:{target}", tuple(options.items()))

    @property
    def count(self) -> int | None:
        """The option ``count``."""
        value = dict(self.options).get("count")
        return None if value is None else whole_number(value, f"data '{printable(self.text)}': count")

    @property
    def path(self) -> Path:
        """The target as a path, with the home folder in place of ~. Raises UsageError for what no path can be."""
        try:
            path = Path(self.target).expanduser()
            path.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(f"data '{printable(self.text)}': no usable path ({one_line(error)})") from error
        return path

    def origin(self, role: str) -> tuple[object, ...]:
        """Equal for references that draw from the same images when opened as ``role``, whatever their count."""
        options = {key: value for key, value in self.options if key != "count"}
        if self.kind == "builtin":
            options.setdefault("split", role)
        target = str(self.path.resolve()) if self.kind in SOURCES and SOURCES[self.kind].is_path else self.target
        return (self.kind, target, tuple(sorted(options.items())))

    def open(self, role: str, *, limited: bool = True) -> ImageSource:
        """The source; ``limited=False`` ignores ``count`` where the set has an end. See ``open_source``."""
        if role not in ROLES:
            raise ValueError(f"role '{role}': expected {', '.join(ROLES)}")
        if self.kind == "builtin" and self.target == "shapes":
            return open_builtin(self.target, dict(self.options), role)
        count = self.count
        options = {key: value for key, value in self.options if key != "count"}
        source = _open(self, options, role)
        if count is None or not limited:
            return source
        if count > len(source):
            raise UsageError(f"data '{printable(self.text)}': count={count}, but there are {len(source)} images")
        return Subset(source, hashed_order(len(source))[:count])


@dataclass(frozen=True)
class Source:
    """A kind of source.

    open: (reference, its options but ``count``, role) -> the images. is_path: whether what follows the colon is a file
    or a folder.
    """

    open: Callable[[Reference, dict[str, str], str], ImageSource]
    is_path: bool = False


SOURCES: dict[str, Source] = {
    "builtin": Source(lambda reference, options, role: open_builtin(reference.target, options, role)),
    "imagefolder": Source(lambda reference, options, role: ImageFolder(reference.path, options, role), is_path=True),
    "npz": Source(lambda reference, options, role: Npz(reference.path, options, role), is_path=True),
}
"""By what stands before the colon; anything else is the user's own function."""


def open_source(reference: str, role: str) -> ImageSource:
    """The image source that ``reference`` names, for the role "calibration" or "evaluation".

    Raises UsageError for an unknown reference or option, and for data that cannot be used.
    """
    return Reference.parse(reference).open(role)


def _open(reference: Reference, options: dict[str, str], role: str) -> ImageSource:
    if reference.kind in SOURCES:
        return SOURCES[reference.kind].open(reference, options, role)
    options_of(options, ("count",), reference.target)
    return Items(call_factory(reference.target, SOURCES), reference.target)


def _suggestion(text: str) -> str:
    path = Path(text)
    if not text:
        return ""
    if path.suffix == ".npz":
        return f" (did you mean npz:{printable(text)}?)"
    try:
        if path.is_dir():
            return f" (did you mean imagefolder:{printable(text)}?)"
    except OSError:  # a name too long for a file
        return ""
    return hint(text, ("builtin:shapes", "builtin:digits", "shapes", "digits"))
