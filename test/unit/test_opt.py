"""The quantune-opt driver: what it prints, where, and its exit codes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from quantune.cli import opt

VALID = "func.func @f(%x: tensor<4xf32>) -> tensor<4xf32> {\n  return %x : tensor<4xf32>\n}\n"
SCALAR_CAST = "func.func @g(%x: f32) {\n  %0 = quant.qcast %x : f32 to !quant.uniform<i8:f32, 0.5>\n  return\n}\n"
LOWER = "--pass-pipeline=quantune-lower-quant"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.mlir"
    path.write_text(VALID)
    return path


def test_prints_the_transformed_module(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert opt.main([str(source), "--pass-pipeline=cse"]) == 0
    assert "func.func @f(%arg0: tensor<4xf32>)" in capsys.readouterr().out


def test_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(VALID.encode())))
    assert opt.main(["-"]) == 0
    assert "@f" in capsys.readouterr().out


def test_reads_bytecode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torch_mlir import ir

    path = tmp_path / "in.mlirbc"
    with ir.Context(), path.open("wb") as file:
        ir.Module.parse(VALID).operation.write_bytecode(file)
    assert opt.main([str(path)]) == 0
    assert "@f" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/file.mlir"], "quantune-opt: error: cannot read '/no/such/file.mlir': No such file or directory"),
        (
            ["{source}", "--pass-pipeline=quantune-lower-qant"],
            "--pass-pipeline: unknown pass 'quantune-lower-qant'; did",
        ),
        (["{source}", "--pass-pipeline=quantune-lower-quant{bits=4}"], "has no option 'bits'; its options: none"),
        (["{source}", "--elide=many"], "argument --elide: 'many': expected a whole number"),
        (["{source}", "--elide=-1"], "--elide -1: expected 0 or more"),
        (["{source}", "--dump-ir-dir={source}"], "expected a writable folder"),
        (["{source}", "--nonsense"], "unrecognized arguments: --nonsense (see quantune-opt --help)"),
    ],
)
def test_usage_errors_exit_with_2(
    arguments: list[str], message: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: int | str | None = opt.main([each.replace("{source}", str(source)) for each in arguments])
    except SystemExit as usage:  # argparse's own errors
        code = usage.code
    assert code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_bytecode_has_no_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.mlirbc"
    path.write_bytes(b"ML\xefR\xff")
    assert opt.main([str(path), "--split-input-file"]) == 2
    assert "is not text; leave the option out for bytecode" in capsys.readouterr().err


def test_parse_error_has_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.mlir"
    path.write_text(f"{VALID}\nfunc.func @g() {{\n  foo\n}}\n")
    assert opt.main([str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"{path}:6:3: error: custom op 'foo' is unknown (tried 'func.foo' as well)\n"
    assert printed.out == ""


def test_pass_failure_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scalar.mlir"
    path.write_text(SCALAR_CAST)
    assert opt.main([str(path), LOWER]) == 1
    assert capsys.readouterr().err.startswith(f"{path}:2:8: error: 'quant.qcast' op casts ")


def test_split_parts_are_independent_and_keep_their_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "parts.mlir"
    path.write_text(f"{VALID}// -----\n{SCALAR_CAST}// -----\n{VALID.replace('@f', '@last')}")
    assert opt.main([str(path), "--split-input-file", LOWER]) == 1
    printed = capsys.readouterr()
    assert f"{path}:6:8: error: 'quant.qcast'" in printed.err
    assert "@f" in printed.out
    assert "@last" in printed.out
    assert printed.out.count("// -----") == 2


def test_elide_shortens_constants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "constant.mlir"
    path.write_text(
        "func.func @f() -> tensor<3xi8> {\n"
        "  %0 = arith.constant dense<[1, 2, 3]> : tensor<3xi8>\n"
        "  return %0 : tensor<3xi8>\n"
        "}\n"
    )
    opt.main([str(path)])
    assert "dense<[1, 2, 3]>" in capsys.readouterr().out
    opt.main([str(path), "--elide=2"])
    assert "dense_resource<__elided__>" in capsys.readouterr().out


def test_unregistered_dialects_need_their_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "util.mlir"
    path.write_text('"util.global"() {sym_name = "x"} : () -> ()\n')
    assert opt.main([str(path)]) == 2
    assert "util" in capsys.readouterr().err
    assert opt.main([str(path), "--allow-unregistered-dialect"]) == 0


def test_dump_ir_dir(source: Path, tmp_path: Path) -> None:
    assert (
        opt.main([str(source), "--pass-pipeline=quantune-lower-quant,cse", f"--dump-ir-dir={tmp_path / 'dump'}"]) == 0
    )
    names = sorted(path.name for path in (tmp_path / "dump").rglob("*.mlir"))
    assert names == ["0_quantune-lower-quant.mlir", "1_cse.mlir"]


def test_timing_goes_to_stderr(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert opt.main([str(source), LOWER, "--timing"]) == 0
    assert "LowerQuant" in capfd.readouterr().err


def test_list_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert opt.main(["--list-passes"]) == 0
    plain = capsys.readouterr().out
    assert "quantune-outline-parameters{scope=<str>}\n    Turn every tagged constant into a named" in plain
    assert opt.main(["--list-passes", "--markdown"]) == 0
    markdown = capsys.readouterr().out
    assert "## `quantune-outline-parameters`" in markdown
    assert "| `scope` | str | `model` |" in markdown
    assert "Run it before any pass that folds" in markdown


def test_does_not_import_torch(source: Path) -> None:
    code = (
        "import sys; from quantune.cli import opt; opt.main(sys.argv[1:]);"
        "sys.exit('+'.join(m for m in ('torch', 'iree.compiler', 'optuna') if m in sys.modules) or 0)"
    )
    command = [sys.executable, "-c", code, str(source), "--pass-pipeline=quantune-lower-quant,cse"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
