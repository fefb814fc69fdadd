from typing import Any

from torch_mlir.ir import Context

class ContextCache:
    _c: Context

class FxImporterHooks: ...

class FxImporter:
    _cc: Any
    def __init__(
        self, *, context: Context | None = None, hooks: FxImporterHooks | None = None, **options: Any
    ) -> None: ...
