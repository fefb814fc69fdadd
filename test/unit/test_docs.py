"""The documents: generated pages are current, links lead somewhere, commands have the options that are shown."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from quantune.cli import benchmark, compile, device, opt, verify
from quantune.numerics.clipping import CLIPS
from quantune.numerics.schemes import SCHEMES

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "third_party" / "README.md"])
TOOLS = {
    "quantune-compile": compile, "quantune-opt": opt, "quantune-benchmark": benchmark, "quantune-device": device,
    "quantune-verify": verify,
}  # fmt: skip
BLOCK = re.compile(r"^```(sh|python)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_passes_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert opt.main(["--list-passes", "--markdown"]) == 0
    current = (ROOT / "docs" / "passes.md").read_text(encoding="utf-8")
    assert current == capsys.readouterr().out, "run: make docs"


def test_docstrings_name_what_is_given_back() -> None:
    """One dialect: "The size of it" and "Read it", not "Return the size of it"."""
    sources = [path for part in ("quantune", "mlir_passes") for path in (ROOT / part).rglob("*.py")]
    told = re.compile(r'"""Returns? |^ *(Args|Returns|Raises):$|:param ', re.MULTILINE)
    assert [str(path) for path in sources if told.search(path.read_text(encoding="utf-8"))] == []


def test_the_numerics_page_has_the_schemes_and_rules_of_the_tables() -> None:
    page = (ROOT / "docs" / "numerics.md").read_text(encoding="utf-8")
    table = page[page.index("| scheme |") :].partition("\n\n")[0].splitlines()[2:]
    assert table == [f"| `{s.name}` | {s.on_activations} | {s.on_weights} |" for s in SCHEMES.values()]
    table = page[page.index("| clip |") :].partition("\n\n")[0].splitlines()[2:]
    assert table == [f"| `{r.name}` | {r.about} | {'paper, wide' if r.searched else 'wide'} |" for r in CLIPS.values()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:quantune|mlir_passes|test|docs|third_party)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), f"{name(page)} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tests_that_are_named_exist(page: Path) -> None:
    for path, function in re.findall(r"`(test/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        assert re.search(rf"^def {function}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (
            f"{name(page)} names {path}::{function}"
        )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_have_the_options_shown(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    helps = {}
    for tool, module in TOOLS.items():
        for command in ([], *([["serve"], ["info"]] if tool == "quantune-device" else [])):
            with pytest.raises(SystemExit):
                module.main([*command, "--help"])
        helps[tool] = capsys.readouterr().out
    for kind, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            ast.parse(block)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] not in TOOLS:
                continue
            for option in (word.partition("=")[0] for word in words if word.startswith("-") and word != "-"):
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", helps[words[0]]), (
                    f"{words[0]} has no {option}: {line}"
                )
