"""The versions of what decides what an artifact computes and which configuration a search finds."""

from __future__ import annotations

VERSION = "0.1.0"
"""Of quantune itself; pyproject.toml declares the same."""

# What a package is called -> the distributions that it may come from.
_PACKAGES = {
    "torch": ("torch",),
    "torch-mlir": ("torch-mlir",),
    "iree-base-compiler": ("iree-base-compiler",),
    "iree-base-runtime": ("iree-base-runtime",),
    "xgboost": ("xgboost-cpu", "xgboost"),
    "optuna": ("optuna",),
}


def versions() -> dict[str, str]:
    """Package -> version, or "not installed"."""
    return {"quantune": VERSION, **{name: _installed(sources) for name, sources in _PACKAGES.items()}}


def _installed(distributions: tuple[str, ...]) -> str:
    from importlib.metadata import PackageNotFoundError, version

    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "not installed"
