"""Pipelines: text to passes and back, running them, and what a failure says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_mlir import ir

from mlir_passes import PASSES, Pass, PassFailure, Pipeline, PipelineError, PipelineFailure
from mlir_passes.base import option_fields
from mlir_passes.registry import load_pass

MODULE = "func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {\n  return %x : tensor<4xf32>\n}\n"


@dataclass(frozen=True)
class Example(Pass):
    """Marks the module with its options."""

    name: ClassVar[str] = "quantune-example"
    count: int = 0
    ratio: float = 1.0
    text: str = ""
    flag: bool = False
    long_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.count == 99:
            raise ValueError("count is 99; expected anything else")

    def run(self, module: ir.Operation) -> None:
        module.attributes["test.text"] = ir.StringAttr.get(self.text, context=module.context)


@dataclass(frozen=True)
class Rejecting(Pass):
    """Rejects every function."""

    name: ClassVar[str] = "quantune-rejecting"
    reason: str

    def run(self, module: ir.Operation) -> None:
        function = module.regions[0].blocks[0].operations[0]
        function.attributes["test.half_done"] = ir.UnitAttr.get(module.context)
        raise PassFailure(function, self.reason)


@dataclass(frozen=True)
class Crashing(Pass):
    """Has a bug."""

    name: ClassVar[str] = "quantune-crashing"

    def run(self, module: ir.Operation) -> None:
        raise ZeroDivisionError("a bug")


@dataclass(frozen=True)
class Breaking(Pass):
    """Leaves invalid IR behind."""

    name: ClassVar[str] = "quantune-breaking"

    def run(self, module: ir.Operation) -> None:
        function = module.regions[0].blocks[0].operations[0]
        function.attributes["function_type"] = ir.StringAttr.get("broken", context=module.context)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for cls in (Example, Rejecting, Crashing, Breaking):
            patch.setitem(PASSES, cls.name, f"{__name__}:{cls.__name__}")
        yield


_examples = st.builds(
    Example,
    count=st.integers().filter(lambda n: n != 99),
    ratio=st.floats(allow_nan=False),
    text=st.text(),
    flag=st.booleans(),
    long_sizes=st.lists(st.integers()).map(tuple),
)
_natives = st.sampled_from(["cse", "func.func(canonicalize,cse)", "canonicalize{max-iterations=3 top-down=false}"])


@given(st.lists(_examples | _natives))
def test_text_round_trip(elements: list[Pass | str]) -> None:
    pipeline = Pipeline(tuple(elements))
    assert Pipeline.parse(str(pipeline)) == pipeline
    if elements:
        assert Pipeline.parse(f" builtin.module( {pipeline} ) ") == pipeline


def test_options_print_only_what_differs_from_the_default() -> None:
    text = "quantune-example{count=3 ratio=0.5 text=a-b flag=true long-sizes=1,2}"
    example = Example(3, 0.5, "a-b", True, (1, 2))
    assert Pipeline.parse(text) == Pipeline((example,))
    assert str(example) == text
    assert str(Example()) == "quantune-example"
    assert str(Rejecting("a b")) == 'quantune-rejecting{reason="a b"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantune-exampel", "unknown pass 'quantune-exampel'; did you mean quantune-example"),
        ("cse,canonicalise", "unknown pass 'canonicalise'; did you mean canonicalize\\?"),
        ("xyz", "unknown pass 'xyz'; see quantune-opt --list-passes"),
        ("quantune-example{cuont=1}", "pass 'quantune-example' has no option 'cuont'; its options: count, ratio, text"),
        ("quantune-crashing{a=1}", "pass 'quantune-crashing' has no option 'a'; its options: none"),
        ("quantune-example{count=1 count=2}", "option 'count' twice"),
        ("quantune-example{count=many}", "option 'count' is 'many', expected an integer"),
        ("quantune-example{flag=yes}", "option 'flag' is 'yes', expected true or false"),
        ("quantune-example{long-sizes=1,x}", "option 'long-sizes' is '1,x', expected integers such as 1,2,3"),
        ("quantune-example{count}", "expected option=value at 'count'"),
        ("quantune-example{count=99}", "pass 'quantune-example': count is 99; expected anything else"),
        ("quantune-rejecting", "pass 'quantune-rejecting' needs option 'reason'"),
        ("quantune-example{count=1}x", "expected '}' at the end"),
        ("func.func(quantune-example)", "rewrites a whole module: write it outside 'func.func\\(...\\)'"),
        ("canonicalize{max-iterations=x}", "bad pipeline element 'canonicalize{max-iterations=x}': failed to add"),
        ("cse,", "empty element"),
        ("cse,,cse", "empty element"),
        ("func.func(cse", "ends inside brackets"),
        ("cse)", "unmatched '\\)' at column 4"),
        ('quantune-example{text="a}', "ends inside a string"),
    ],
)
def test_wrong_text_is_one_line_that_names_the_mistake(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        Pipeline.parse(text)
    assert "\n" not in str(caught.value)


def test_run_mixes_python_and_native_passes() -> None:
    source = "func.func @f() -> i32 {\n %0 = arith.constant 1 : i32\n %1 = arith.constant 2 : i32\n return %1 : i32\n}"
    with ir.Context():
        module = ir.Module.parse(source)
        Pipeline.parse('canonicalize,quantune-example{text="a, b}"},cse').run(module)
        assert module.operation.attributes["test.text"].value == "a, b}"
        assert len(list(module.body.operations[0].regions[0].blocks[0].operations)) == 2


def test_failure_names_position_operation_pass_and_reproducer(tmp_path: Path) -> None:
    pipeline = Pipeline.parse("cse,quantune-rejecting{reason=\"is 'wrong': 3\"}")
    with ir.Context():
        module = ir.Module.parse(MODULE)
        before = str(module)
        with pytest.raises(PipelineFailure) as caught:
            pipeline.run(module, reproducer_dir=tmp_path / "new")
    (reproducer,) = (tmp_path / "new").iterdir()
    assert str(caught.value) == (
        f"-:1:1: error: 'func.func' op is 'wrong': 3 (pass quantune-rejecting; reproducer: {reproducer})"
    )
    first, _, rest = reproducer.read_text().partition("\n")
    assert first.startswith("// RUN-ME: quantune-opt --pass-pipeline='cse,quantune-rejecting{reason=")
    assert first.endswith(" %s")
    assert rest.strip() == before.strip()


def test_reproducer_replays(tmp_path: Path) -> None:
    source = "func.func @f(%x: f32) {\n %0 = quant.qcast %x : f32 to !quant.uniform<i8:f32, 0.5>\n return\n}"
    with ir.Context(), pytest.raises(PipelineFailure) as caught:
        Pipeline.parse("quantune-lower-quant,cse").run(ir.Module.parse(source), reproducer_dir=tmp_path)
    (reproducer,) = tmp_path.iterdir()
    command = reproducer.read_text().partition("\n")[0].removeprefix("// RUN-ME: quantune-opt")
    replay = subprocess.run(
        f"{sys.executable} -m quantune.cli.opt {command.replace('%s', str(reproducer))}",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert replay.returncode == 1
    assert str(caught.value).partition("error: ")[2].partition(" (")[0] in replay.stderr


def test_success_writes_no_reproducer(tmp_path: Path) -> None:
    with ir.Context():
        Pipeline.parse("cse").run(ir.Module.parse(MODULE), reproducer_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bug_in_a_pass_keeps_its_own_error() -> None:
    with ir.Context(), pytest.raises(ZeroDivisionError, match="a bug"):
        Pipeline.parse("quantune-crashing").run(ir.Module.parse(MODULE))


def test_invalid_ir_is_caught_behind_the_pass_that_made_it() -> None:
    with ir.Context(), pytest.raises(PipelineFailure) as caught:
        Pipeline.parse("quantune-breaking").run(ir.Module.parse(MODULE))
    assert str(caught.value) == "-:1:1: error: 'func.func' op requires attribute 'function_type'"


def test_dump_dir_has_a_file_for_each_pass(tmp_path: Path) -> None:
    with ir.Context():
        Pipeline.parse("quantune-example,cse").run(ir.Module.parse(MODULE), dump_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.mlir")) == ["0_quantune-example.mlir", "1_cse.mlir"]


def test_print_ir_after_all_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with ir.Context():
        Pipeline.parse("quantune-example,cse").run(ir.Module.parse(MODULE), print_ir_after_all=True)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "IR Dump After Example: quantune-example" in printed.err


def test_every_registered_pass_has_its_name_a_summary_and_printable_options() -> None:
    for name in PASSES:
        cls = load_pass(name)
        assert cls.name == name
        assert cls.__doc__
        for _, hint in option_fields(cls):
            assert hint in (int, float, str, bool, tuple[int, ...])


def test_importing_the_package_does_not_import_the_bindings() -> None:
    code = "import sys, mlir_passes; sys.exit(any(m in sys.modules for m in ('torch_mlir.ir', 'numpy', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
