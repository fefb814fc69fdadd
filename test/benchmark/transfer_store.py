"""Puts measured tables into the store of past studies that ships with the package, or takes models out of it.

  python test/benchmark/transfer_store.py TABLE.json … [--note TEXT] [--store FILE] [--remove MODEL …]

TABLE.json is what test/benchmark/table.py writes, of one or several models. The study of a model replaces the one the
store has of it. Without tables the store is listed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import quantune.search
from quantune.errors import QuantuneError, UsageError
from quantune.quantization.predictions import ARCHITECTURE, FEATURES
from quantune.quantization.space import PARAMETERS
from quantune.search.transfer import SHIPPED, PastStudy, load_studies, save_studies
from quantune.tuning.screening import SCREENED

STORE = Path(quantune.search.__file__).parent / "data" / SHIPPED


def read_studies(path: Path, provenance: dict[str, str]) -> list[PastStudy]:
    """The studies of a table. Raises UsageError for a file that is no table, or has no f32 row of a model."""
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        models = dict.fromkeys(row["model"] for row in rows)
        return [_study(model, [r for r in rows if r["model"] == model], provenance) for model in models]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a table of test/benchmark/table.py ({type(error).__name__}: {error})") from error


def _study(model: str, rows: list[dict[str, Any]], provenance: dict[str, str]) -> PastStudy:
    reference = next((r["accuracy"] for r in rows if r["precision"] == "f32"), None)
    if reference is None:
        raise ValueError(f"{model} has no row of precision f32")
    quantized = [r for r in rows if r["precision"] in PARAMETERS["precision"]]
    return PastStudy(
        model=model,
        rows=tuple(({name: r[name] for name in PARAMETERS}, float(r["accuracy"])) for r in quantized),
        reference=float(reference),
        feature_names=(*FEATURES, *ARCHITECTURE, SCREENED),
        features=tuple(tuple(map(float, r["features"])) for r in quantized),
        fingerprint=str(rows[0].get("fingerprint", "")),
        provenance={**provenance, "evaluation images": str(rows[0].get("images", "unknown"))},
    )


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, metavar="TABLE.json")
    parser.add_argument("--note", default="", help="how the tables were measured, kept with the studies")
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--remove", nargs="*", default=[], metavar="MODEL")
    arguments = parser.parse_args(argv)
    try:
        studies = {s.model: s for s in load_studies(arguments.store)} if arguments.store.is_file() else {}
        unknown = [name for name in arguments.remove if name not in studies]
        if unknown:
            raise UsageError(f"--remove {unknown[0]}: the store has {', '.join(studies) or 'no study'}")
        for path in arguments.tables:
            provenance = {"command": "test/benchmark/table.py", "note": arguments.note}
            studies |= {s.model: s for s in read_studies(path, provenance)}
        kept = [study for name, study in studies.items() if name not in arguments.remove]
        if arguments.tables or arguments.remove:
            arguments.store.parent.mkdir(parents=True, exist_ok=True)
            save_studies(arguments.store, kept)
    except QuantuneError as error:
        print(f"transfer_store: error: {error}", file=sys.stderr)
        return error.exit_code
    for study in kept:
        best = max(value for _, value in study.rows)
        print(f"{study.model}: {len(study.rows)} rows, f32 {100 * study.reference:.2f} %, best {100 * best:.2f} %")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
