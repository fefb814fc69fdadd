"""Imports what a search imports on its way, for a process that searches are forked from."""

from __future__ import annotations

import importlib

NAMES = (
    "alembic.command", "alembic.config", "alembic.migration", "alembic.script", "iree.compiler.dialects.builtin",
    "iree.compiler.dialects.flow", "iree.compiler.dialects.hal", "iree.compiler.dialects.llvm",
    "iree.compiler.dialects.stream", "iree.compiler.dialects.util", "iree.compiler.ir", "iree.compiler.tools", "jinja2",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "matplotlib.figure",
    "mlir_passes.reading", "mlir_passes.registry",
    "optuna.storages._rdb.models", "quantune.api", "quantune.cli.compile", "quantune.cli.console",
    "quantune.report.plots", "quantune.report.report", "rich.progress", "rich.table", "sqlalchemy.dialects.sqlite",
    "torch_mlir.ir", "torch_mlir.passmanager",
)  # fmt: skip

for name in ("short", *NAMES):
    importlib.import_module(name)
