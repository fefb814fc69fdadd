"""Options of quantune-compile that need or exclude each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantune.cli import compile

SEARCH = (
    ("--objective", "size"), ("--max-drop", "0.01"), ("--sampler", "xgboost"), ("--seed", "0"), ("--threads", "1"),
    ("--no-transfer",), ("--no-early-stop",), ("--max-trials", "3"), ("--time-budget", "1m"), ("--retry-failed",),
    ("--space", "paper"), ("--smallest-within", "0.01"), ("--score", "gram"), ("--propose", "list"),
    ("--walk", "bisection"),
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
    "option",
    [
        ("--config", "clip=kl"), ("--emit", "qdq"), ("--target", "cpu"), ("--target-cpu", "znver4"),
        ("--cuda-arch", "sm_80"), ("--vulkan-target", "ada"), ("--device", "tcp://board:7433"),
        ("--memory-limit", "2GB"), ("--print-ir-after-all",), ("--dump-ir-dir", "ir"),
    ],
    ids=lambda option: option[0],
)  # fmt: skip
def test_what_making_again_would_ignore_is_refused(option: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert compile.main(["--like", "a.vmfb", *option]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert option[0] in line
    assert "leave out" in line


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


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--smallest-within", "2"),
         "largest accuracy drop 2.0: expected a fraction between 0 and 1 (0.01 is one point)"),
        (("--smallest-within", "-0.01"),
         "largest accuracy drop -0.01: expected a fraction between 0 and 1 (0.01 is one point)"),
        (("--smallest-within", "0.01", "--weight-bits", "4"),
         "weight bits and the smallest within a bound exclude each other; give one of them"),
        (("--smallest-within", "0.01", "--max-drop", "0.02"),
         "--max-drop is said by --smallest-within already; give one of them"),
        (("--smallest-within", "0.01", "--objective", "size"),
         "--objective is said by --smallest-within already; give one of them"),
        (("--score", "gram"),
         "score 'gram' has nothing to allocate; give a size budget or the smallest within a bound too"),
        (("--smallest-within", "0.01", "--score", "gramm"),
         "score 'gramm': expected one of sqnr, gram, clado, alone, output-error, relative-error, orthogonality, "
         "ompq-ptq, ompq-qat, parameters (did you mean gram?)"),
        (("--size-budget", "1MB", "--score", ""),
         "score '': expected one of sqnr, gram, clado, alone, output-error, relative-error, orthogonality, "
         "ompq-ptq, ompq-qat, parameters"),
        (("--propose", "list"),
         "proposer 'list' has nothing to allocate; give a size budget or the smallest within a bound too"),
        (("--size-budget", "1MB", "--propose", "lists"),
         "proposer 'lists': expected one of optimal, greedy, list, uniform, random (did you mean list?)"),
        (("--size-budget", "1MB", "--propose", ""),
         "proposer '': expected one of optimal, greedy, list, uniform, random"),
        (("--walk", "bisection"), "walk 'bisection' belongs to the smallest within a bound; give that too"),
        (("--smallest-within", "0.01", "--walk", "binary"),
         "walk 'binary': expected one of bisection, interpolation, brute-force"),
        (("--smallest-within", "0.01", "--walk", ""),
         "walk '': expected one of bisection, interpolation, brute-force"),
    ],
)  # fmt: skip
def test_what_is_wanted_of_the_bits_is_refused_in_one_line(
    options: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the model is looked for."""
    given = ("builtin:no_model", "--calib", "builtin:digits", "--eval", "builtin:digits")
    assert compile.main([*given, *options]) == 2
    assert capsys.readouterr().err.splitlines() == [f"quantune-compile: error: {line}"]


LOCAL = ("--calib", "builtin:digits", "--mode", "local")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--mode", "locale"), "--mode 'locale': expected search or local"),
        (("--mode", ""), "--mode '': expected search or local"),
        (("--mode", "local"),
         "--calib is missing: --mode local compares the network with itself on calibration images"),
        ((*LOCAL, "--eval", "builtin:digits"), "--mode local evaluates nothing; leave out --eval, or it"),
        ((*LOCAL, "--emit", "qdq"), "--mode local builds an artifact for this machine; leave out --emit, or it"),
        ((*LOCAL, "--print-ir-after-all"),
         "--mode local builds an artifact for this machine; leave out --print-ir-after-all, or it"),
        ((*LOCAL, "--max-trials", "3"), "--max-trials belongs to a search; leave out --mode local, or it"),
        ((*LOCAL, "--target-sqnr", "0"), "target of 0 dB: expected a number of decibels above 0, such as 30"),
        ((*LOCAL, "--target-sqnr", "-3"), "target of -3 dB: expected a number of decibels above 0, such as 30"),
        (("--config", "clip=kl", "--target-sqnr", "30"),
         "--target-sqnr belongs to --mode local; give that too, or leave it out"),
        ((*LOCAL, "--max-slowdown", "0.5"), "largest slowdown 0.5: expected a factor of 1 or more, such as 1.1"),
        ((*LOCAL, "--max-slowdown", "-1"), "largest slowdown -1: expected a factor of 1 or more, such as 1.1"),
        (("--config", "clip=kl", "--max-slowdown", "1.1"),
         "--max-slowdown belongs to --mode local; give that too, or leave it out"),
    ],
)  # fmt: skip
def test_what_is_wanted_of_the_local_mode_is_refused_in_one_line(
    options: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Before the model is looked for."""
    assert compile.main(["builtin:no_model", *options, "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines() == [f"quantune-compile: error: {line}"]
