"""Options of quantune-compile that need or exclude each other."""

from __future__ import annotations

import pytest

from quantune.cli import compile

SEARCH = (
    ("--objective", "size"), ("--max-drop", "0.01"), ("--sampler", "xgboost"), ("--seed", "0"), ("--threads", "1"),
    ("--no-transfer",), ("--no-early-stop",), ("--max-trials", "3"), ("--time-budget", "1m"), ("--retry-failed",),
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
