# Generated from the dialect's definition when the wheel is built; not worth repeating here.
from typing import Any

def __getattr__(name: str) -> Any: ...
