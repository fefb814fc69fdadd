"""Hostile command lines: whatever is written there, the answer is one line and exit code 2, never a traceback."""

from __future__ import annotations

import contextlib
import io
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import sizes
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obligations import Obligation

from quantune.cli import benchmark, device, entry, opt, verify
from quantune.cli import compile as compiling

PROMISE = "a hostile command line gets one line and an exit code"

HOSTILE = [
    "", " ", "\0", "a\0b", "\ud800", "a\udcffb", "\n", "a\nb", "\x1b]0;x\x07", "\x1b[2J", "\u202e", "é" * 200,
    "x" * 300, "/" * 5000, "../" * 100, "9" * 5000, "-1", "0", "1e400", "-1e400", "nan", "inf", "-inf", "1_000", "٣",
    "²", "0x10", "1.5", "[red]x[/]", ":cat:", "%s%n", "{0}", "$(id)", ";", ",", ",,,", "1,2", "1,2,3,4", "-1,2,3",
    "9999999,1,1", "=", "a=b", "clip=", "bits=99", "calib=" + "9" * 400, "npz:", "npz:\0", "imagefolder:",
    "imagefolder:" + "d" * 300, "builtin:", "builtin:shapes?count=" + "9" * 50, "builtin:shapes?count=0",
    "builtin:shapes?x", "torchvision:", "torchvision:nothing", "os:getcwd", "os:nothing", ":", "::", "a:b:c", ".mlir",
    "none.mlir", "none.pt2", "/dev/null", "/dev/full/x", "/proc/self", "cpu:", "cpu:host:host", "cuda:sm_1",
    "vulkan:" + "v" * 999, "1h1m", "-5s", "0s", "1e3s", "9" * 12 + "h", "0.5x", "-1MB", "1e999MB", "sqlite:///",
    "postgresql://u:secret@", "--", "-", "-q", "--no-such-option",
]  # fmt: skip


def _serve() -> object:
    """The part of quantune-device's command line that has options."""
    parsers = [each for each in vars(device.parser())["_actions"] if isinstance(each.choices, dict)]
    return parsers[0].choices["serve"]


TOOLS: dict[str, tuple[Callable[[], object], entry.Command]] = {
    "compile": (compiling.parser, compiling.command),
    "benchmark": (benchmark._parser, benchmark.command),
    "opt": (opt._parser, opt.command),
    "verify": (verify._parser, verify.command),
    "device": (_serve, device.command),
}


class Reached(Exception):
    """The command line was accepted, and the work would begin."""


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Cut off what loads models, compiles and measures: what comes before is meant."""

    def reached(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr("quantune.api.import_any", reached)
    monkeypatch.setattr("quantune.tuning.measuring.check_measurable", lambda target, cache: None)
    monkeypatch.setattr("quantune.rebuilding.rebuild", reached)
    monkeypatch.setattr(benchmark, "compare", reached)
    monkeypatch.setattr(opt, "_run", reached)
    monkeypatch.setattr(verify, "verify", reached)
    monkeypatch.setattr("quantune.device.server.Server.serve", reached)
    monkeypatch.setattr("quantune.device.client.Connection", reached, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tiny.make(tmp_path, images=6)


def _options(tool: str) -> list[str]:
    """The options of a tool that take a value, as it is given."""
    actions = vars(TOOLS[tool][0]())["_actions"]
    return [each.option_strings[-1] for each in actions if each.option_strings and each.nargs != 0]


def _answer(tool: str, words: Sequence[str]) -> tuple[int, str]:
    """Exit code and standard error of a command line; code 0 where it would begin to work."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = entry.run(f"quantune-{tool}", TOOLS[tool][1], list(words))
        except SystemExit as error:
            code = int(error.code or 0)
    text = told.getvalue()
    return (0, "") if "internal error: Reached" in text else (code, text)


def _check(promise: Obligation, tool: str, words: Sequence[str]) -> None:
    code, told = _answer(tool, words)
    fine = code == 0 or (code in (1, 2, 4) and told.count("\n") == 1 and re.match(f"quantune-{tool}( serve)?: ", told))
    clean = all(c.isprintable() or c == "\n" for c in told) and len(told) < 1500
    wrong = "Traceback" in told or "internal error" in told
    promise.tried(fine and clean and not wrong, f"{tool} {str(words)[:300]}: {code}: {told[:400]!r}")


def _valid(tool: str) -> list[str]:
    if tool == "compile":
        return ["builtin:mobilenet_v2_shapes", "--calib", "npz:calib.npz", "--eval", "npz:eval.npz"]
    return {"benchmark": ["none.vmfb"], "opt": ["none.mlir"], "verify": ["none.vmfb"], "device": ["serve"]}[tool]


@pytest.mark.parametrize("tool", TOOLS)
def test_every_option_with_some_hostile_values(tool: str, obligation: Callable[[str], Obligation]) -> None:
    promise, chosen = obligation(PROMISE), random.Random(0)  # the same every time
    for option in _options(tool):
        for value in chosen.sample(HOSTILE, 8):
            _check(promise, tool, [*_valid(tool), f"{option}={value}"])
    for value in chosen.sample(HOSTILE, 20):
        _check(promise, tool, [value])


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_every_option_with_every_hostile_value(tool: str, obligation: Callable[[str], Obligation]) -> None:
    promise = obligation(PROMISE)
    for value in HOSTILE:
        for option in _options(tool):
            _check(promise, tool, [*_valid(tool), f"{option}={value}"])
        _check(promise, tool, [value])
        _check(promise, tool, [*_valid(tool)[:1], *_valid(tool)[1:], value])


def _lines(tool: str) -> st.SearchStrategy[list[str]]:
    text = st.one_of(
        st.sampled_from(HOSTILE),
        st.text(st.characters(exclude_characters="/"), max_size=20),
        st.floats().map(str),
        st.integers().map(str),
    )
    option = st.tuples(st.sampled_from(_options(tool)), text).map("=".join)
    flags = [o for a in vars(TOOLS[tool][0]())["_actions"] for o in a.option_strings if a.nargs == 0 and o not in _ENDS]
    return st.lists(st.one_of(option, st.sampled_from(flags or ["-q"]), text), max_size=6)


_ENDS = ("-h", "--help", "--version", "--list-passes", "--markdown")


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_any_command_line(tool: str, obligation: Callable[[str], Obligation]) -> None:
    promise = obligation(PROMISE)

    @settings(max_examples=sizes.LINES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(words=_lines(tool))
    def check(words: list[str]) -> None:
        with _input():
            _check(promise, tool, [*_valid(tool), *words])

    check()


@contextlib.contextmanager
def _input() -> Iterator[None]:
    """An empty standard input: quantune-opt reads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
        yield
