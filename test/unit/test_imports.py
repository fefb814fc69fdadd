"""Who may import whom: the layers of docs/architecture.md, and what has to stay light to import."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import quantune

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted([*(ROOT / "quantune").rglob("*.py"), *(ROOT / "mlir_passes").rglob("*.py")])


def names(text: str) -> set[str]:
    """Names separated by blanks; a leading dot stands for quantune."""
    return {f"quantune{name}" if name.startswith(".") else name for name in text.split()}


# Part -> what it may import besides itself, the standard library and quantune.errors.
ALLOWED: dict[str, set[str]] = {
    "mlir_passes.network": names("numpy"),
    "mlir_passes": names("numpy torch_mlir mlir_passes.network"),
    "quantune.errors": set(),
    "quantune.versions": set(),
    "quantune.user_code": set(),
    "quantune.torchvision_compat": names("torch torchvision"),
    "quantune.process": set(),
    "quantune.cache": names(".process"),
    "quantune.numerics": names("numpy mlir_passes.network"),
    "quantune.quantization": names("numpy optuna mlir_passes.network .numerics"),
    "quantune.artifact": set(),
    "quantune.metrics": names("numpy scipy .user_code"),
    "quantune.data": names("numpy PIL sklearn .process .user_code"),
    "quantune.zoo": names("numpy torch rich safetensors .data .process .torchvision_compat"),
    "quantune.frontend": names(
        "numpy onnx torch safetensors torch_mlir mlir_passes mlir_passes.network .process .torchvision_compat"
        " .user_code .zoo"
    ),
    "quantune.refine": names("numpy torch mlir_passes.network .numerics .quantization"),
    "quantune.allocation": names("numpy scipy mlir_passes.network .numerics .quantization"),
    "quantune.compiler": names(
        "numpy iree torch_mlir mlir_passes mlir_passes.network .artifact .cache .process .quantization"
    ),
    "quantune.runtime": names("numpy iree .artifact .process .quantization"),
    "quantune.device": names("numpy .artifact .compiler .process .runtime .versions"),
    "quantune.cluster": names("numpy distributed .artifact .device .process .runtime"),
    "quantune.export": names("numpy onnx torch_mlir mlir_passes mlir_passes.network .numerics .quantization"),
    "quantune.search": names("numpy scipy optuna sqlalchemy grpc xgboost .metrics .numerics .process .quantization"),
    "quantune.report": names("jinja2 matplotlib pydantic .process .quantization .search"),
    "quantune.tuning": names(
        "numpy scipy onnx optuna mlir_passes.network .allocation .artifact .cache .cluster .compiler .data .device"
        " .export .frontend .metrics .numerics .process .quantization .refine .report .runtime .search .versions"
    ),
    "quantune.api": names(
        "torch .cache .compiler .data .frontend .metrics .process .quantization .runtime .search .tuning .zoo"
    ),
    "quantune.exporting": names(".api .process .quantization .tuning"),
    "quantune.rebuilding": names(".api .artifact .cache .compiler .data .quantization .runtime .tuning"),
    "quantune.verification": names("numpy .artifact .compiler .data .device .metrics .process .runtime"),
    "quantune.cli": names(
        "rich optuna torch_mlir mlir_passes .api .artifact .cache .compiler .device .metrics .process .quantization"
        " .rebuilding .runtime .search .tuning .verification .versions"
    ),
    "quantune": names(".api .exporting .quantization .rebuilding .runtime .tuning .versions"),
}

# Heavy, or not needed by every use of the file: to be imported by the function that needs it.
INSIDE_FUNCTIONS_ONLY: dict[str, set[str]] = {
    "quantune/compiler": {"torch_mlir", "iree"},
    "quantune/tuning": {"onnx", "quantune.export.qdq"},
    "quantune/cli": {"torch_mlir", "optuna"},
    "quantune/quantization": {"optuna"},
    "quantune/api.py": {"torch", "quantune.frontend.models", "quantune.zoo"},
    "quantune/frontend/imported.py": {"torch_mlir"},
    "quantune/refine": {"torch"},
    "quantune/metrics": {"scipy"},
    "quantune/runtime": {"iree"},
    "quantune/search": {"xgboost", "grpc"},
    "quantune/cluster": {"distributed"},
    "quantune/data": {"PIL", "sklearn"},
    "mlir_passes/base.py": {"torch_mlir"},
    "mlir_passes/pipeline.py": {"torch_mlir"},
}

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "PIL": "pillow", "sklearn": "scikit-learn", "torch_mlir": "torch-mlir", "iree.runtime": "iree-base-runtime",
    "iree.compiler": "iree-base-compiler", "grpc": "grpcio",
}  # fmt: skip


def imports(where: Path, source: str) -> Iterator[tuple[str, int, bool]]:
    """Full names of what a file imports when it runs, with the line and whether that is inside a function."""
    package = where.parent.parts

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join((*package[: len(package) - child.level + 1], child.module or "")) if child.level else ""
                origin = base.rstrip(".") or child.module or ""
                yield from ((f"{origin}.{alias.name}", child.lineno, inside) for alias in child.names)
            yield from visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    return visit(ast.parse(source), False)


def part(name: str) -> str:
    """The part of the program, or the third-party package, that the full name of a module or of a thing in it is in."""
    parts = name.split(".")
    if re.fullmatch(r"mlir_passes\.(network|functions|vocabulary|ops)(\.[A-Z]\w*|\.(traits|room)_of|\.rooms)?", name):
        return "mlir_passes.network"  # functions and tables, those of the operations too, are data, as the network is
    if parts[0] == "quantune" and len(parts) > 1 and f"quantune.{parts[1]}" in ALLOWED:
        return f"quantune.{parts[1]}"
    return parts[0]


def violations(where: Path, source: str) -> list[str]:
    """What the source of the file at `where` (under ROOT) imports and may not."""
    module = ".".join(where.with_suffix("").parts).removesuffix(".__init__")
    own = part(module)
    if own == "quantune" and module != "quantune":
        return [f"{where} is in no part of ALLOWED"]
    lazy = {name for prefix, lot in INSIDE_FUNCTIONS_ONLY.items() if str(where).startswith(prefix) for name in lot}
    found = []
    for name, line, inside in imports(where, source):
        other = part(name)
        if other in sys.stdlib_module_names or other in (own, "__future__", "quantune.errors"):
            continue
        if other not in ALLOWED[own]:
            found.append(f"{where}:{line} imports {name}: {own} may not know {other}")
        elif not inside and (other in lazy or any(f"{name}.".startswith(f"{slow}.") for slow in lazy)):
            found.append(f"{where}:{line} imports {name} at module level; move it into the function that needs it")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_what_its_part_may(path: Path) -> None:
    assert violations(path.relative_to(ROOT), path.read_text(encoding="utf-8")) == []


def test_every_permission_is_used() -> None:
    used: dict[str, set[str]] = {own: set() for own in ALLOWED}
    for path in SOURCES:
        where = path.relative_to(ROOT)
        own = part(".".join(where.with_suffix("").parts).removesuffix(".__init__"))
        used[own] |= {part(name) for name, _, _ in imports(where, path.read_text(encoding="utf-8"))}
    used["quantune"] |= {part(home) for home in quantune._HOMES.values()}  # loaded when they are first asked for
    assert {own: unused for own, allowed in ALLOWED.items() if (unused := sorted(allowed - used[own]))} == {}


def test_parts_form_no_circle() -> None:
    tuple(graphlib.TopologicalSorter(ALLOWED).static_order())  # raises CycleError


def test_bazel_states_the_same_graph() -> None:
    text = (ROOT / "BUILD.bazel").read_text(encoding="utf-8")
    stated = ast.literal_eval(
        text[text.index("PARTS = ") + len("PARTS = ") : text.index("}\n", text.index("PARTS = ")) + 1]
    )
    base = {path.stem for path in (ROOT / "quantune").glob("*.py")} - {"cache"}  # single files: :base and :quantune
    expected = {
        own.removeprefix("quantune."): sorted(
            {each.removeprefix("quantune.").split(".")[0] for each in allowed if each.startswith(("quantune", "mlir"))}
            - base
        )
        for own, allowed in ALLOWED.items()
        if own.startswith("quantune.") and own.removeprefix("quantune.") not in {*base, "cli"}
    }
    assert stated == expected


@pytest.mark.parametrize(
    ("where", "source", "complaint"),
    [
        ("mlir_passes/x.py", "import torch.nn", "mlir_passes may not know torch"),
        (
            "mlir_passes/cpu/x.py",
            "from quantune.quantization.plan import make_plan",
            "may not know quantune.quantization",
        ),
        ("quantune/search/x.py", "def f():\n    import iree.runtime", "x.py:2 imports iree.runtime"),
        ("quantune/search/x.py", "from ..runtime import program", "may not know quantune.runtime"),
        ("quantune/report/x.py", "from quantune import runtime", "may not know quantune.runtime"),
        ("quantune/numerics/x.py", "from mlir_passes import match", "may not know mlir_passes"),
        ("quantune/numerics/x.py", "from mlir_passes import network", None),
        ("quantune/frontend/imported.py", "from torch_mlir import ir", "at module level"),
        ("quantune/frontend/imported.py", "if TYPE_CHECKING:\n    from torch_mlir import ir", None),
        ("quantune/frontend/imported.py", "def f():\n    from torch_mlir import ir", None),
        ("quantune/new.py", "", "in no part"),
    ],
)
def test_violations(where: str, source: str, complaint: str | None) -> None:
    found = violations(Path(where), source)
    assert (complaint in found[0]) if complaint else not found


def test_declared_and_used_packages_are_the_same() -> None:
    extras = _project()["optional-dependencies"]
    declared = {_name(line) for line in _project()["dependencies"] + extras["compile"]}
    optional = {_name(line) for lines in extras.values() for line in lines}
    used = set()
    for path in SOURCES:
        for name, _, _ in imports(path.relative_to(ROOT), path.read_text(encoding="utf-8")):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in ("quantune", "mlir_passes", "__future__"):
                continue
            key = ".".join(name.split(".")[:2]) if top == "iree" else top
            used.add(DISTRIBUTIONS.get(key, key))
    started_as_a_program = {"iree-base-compiler"}
    one_of_two = {"xgboost-cpu"}
    assert used - declared <= optional
    assert declared - used == started_as_a_program | one_of_two


def test_version_is_the_declared_one() -> None:
    assert quantune.__version__ == _project()["version"]


@pytest.mark.parametrize(
    "module",
    [
        "quantune",
        "quantune.cli.opt",
        "quantune.cli.compile",
        "quantune.cli.device",
        "quantune.device.server",
        "mlir_passes",
    ],
)
def test_import_is_light(module: str) -> None:
    code = (
        f"import sys, {module}; heavy = ('torch', 'torch_mlir', 'iree', 'optuna', 'xgboost', 'matplotlib');"
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, f"import {module} loads {result.stderr}"


def test_public_names_are_lazy_and_complete() -> None:
    assert set(quantune.__all__) <= set(dir(quantune))
    assert quantune.QuantConfig.parse("scheme=symmetric").scheme == "symmetric"
    with pytest.raises(AttributeError, match="no attribute 'tune'"):
        _ = quantune.tune
    for name in quantune.__all__:
        assert getattr(quantune, name) is not None


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _name(requirement: str) -> str:
    for end, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:end]
    return requirement
