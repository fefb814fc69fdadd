from typing import Any

from torch_mlir.extras.fx_importer import FxImporter
from torch_mlir.ir import Module

def export_and_import(
    f: Any, *args: Any, output_type: str = ..., fx_importer: FxImporter | None = None, **options: Any
) -> Module: ...
