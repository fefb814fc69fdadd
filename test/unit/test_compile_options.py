"""Options of quantune-compile that need or exclude each other."""

from __future__ import annotations

import pytest

from quantune.cli import compile

SEARCH = (
    ("--objective", "size"), ("--max-drop", "0.01"), ("--sampler", "xgboost"), ("--seed", "0"), ("--threads", "1"),
    ("--no-transfer",), ("--no-early-stop",), ("--max-trials", "3"), ("--time-budget", "1m"), ("--retry-failed",),
    ("--space", "paper"),
)  # fmt: skip


@pytest.mark.parametrize("without", [("--config", "clip=kl"), ("--emit", "qdq"), ("--like", "a.vmfb")])
@pytest.mark.parametrize("option", SEARCH, ids=lambda option: option[0])
def test_options_of_a_search_are_refused_without_one(
    option: tuple[str, ...], without: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where they say what the default is: they would be ignored."""
    assert compile.main(["builtin:no_model", *without, *option]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{option[0]} belongs to a search; leave out --config, --emit and --like, or it" in line


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("wde", "space 'wde': expected one of paper, wide (did you mean wide?)"),
        ("96", "space '96': expected one of paper, wide"),
        ("", "space '': expected one of paper, wide"),
    ],
)
def test_an_unknown_space_is_one_line(name: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the model is looked for."""
    given = ("builtin:no_model", "--calib", "builtin:digits", "--eval", "builtin:digits")
    assert compile.main([*given, "--space", name]) == 2
    assert capsys.readouterr().err.splitlines() == [f"quantune-compile: error: {line}"]
