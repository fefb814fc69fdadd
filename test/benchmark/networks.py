"""Whether torchvision's classification networks import, compile and run in integers, and what does not and why.

  python test/benchmark/networks.py [NAME...] [--rows docs/results/networks.json] [--page docs/networks.md] [--missing]

Weights are random (no network access is needed), images small: 64 pixels, and 224 or 299 where a network asks for more.
Each NAME (default: all) is compiled for this machine as int8; its row replaces an older one in --rows, and --page is
written anew from all rows after each. --missing leaves out names that have a row. A row has:

  i8      share of the multiply-accumulates that the compiled program does in 8-bit integers
  float   how many operations between the first and the last layer run in f32, and why, by count
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mlir_passes.network import Network
from quantune.cache import ArtifactCache
from quantune.compiler.targets import Target
from quantune.data.base import ImageSource
from quantune.data.splits import Split
from quantune.errors import QuantuneError
from quantune.frontend.models import ModelRequest, load_model
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import integer_layers, lay_out
from quantune.torchvision_compat import torchvision
from quantune.tuning.builder import Builder

SIZES = {"alexnet": 224, "inception": 299, "vgg": 224, "vit": 224, "swin": 224, "maxvit": 224, "vit_h_14": 224}
"""What families are tried at; 64 elsewhere."""
CONFIG = QuantConfig(calib=1)


class Noise(ImageSource):
    """One image of noise."""

    def __init__(self, size: int) -> None:
        self.name, self.classes, self.shape = "noise", None, (3, size, size)
        self.image = np.random.default_rng(0).normal(0, 1, self.shape).astype(np.float32)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.image, 0


def measure(name: str, folder: Path) -> dict[str, Any]:
    """The row of one network."""
    size = next((size for family, size in SIZES.items() if name.startswith(family)), 64)
    row: dict[str, Any] = {"name": name, "size": size, "imports": False, "compiles": False}
    try:
        model = load_model(ModelRequest(f"torchvision:{name}", shape=(3, size, size)))
        floats = left_in_f32(model.network)
        row |= {
            "imports": True,
            "layers": len(model.network.layers),
            "float": sum(floats.values()),
            "why": dict(floats),
        }
        cache = ArtifactCache(folder)
        builder = Builder(model, Target("cpu"), calib=Split(Noise(size), (0,)), cache=cache, sizes=(1,))
        layers = builder.artifact(CONFIG).layers
        integer = sum(layer.macs for layer in layers if layer.is_integer)
        row |= {"compiles": True, "i8": integer / sum(layer.macs for layer in layers)}
    except QuantuneError as error:
        row["error"] = str(error).splitlines()[0]
    return row


def left_in_f32(network: Network) -> Counter[str]:
    """What runs in f32 between the first and the last layer, by what it is."""
    layout = lay_out(network, integer_layers(network, "int8"))
    places = [number for number, node in enumerate(network.nodes) if node.traits.weighted]
    between = network.nodes[places[0] : places[-1]]
    alone = [node for node in between if node.name not in layout.integer]
    return Counter(node.detail or f"{node.kind} of what is f32" for node in alone)


def page(rows: list[dict[str, Any]], known: int) -> str:
    """The page of the documentation; known: how many names torchvision has."""
    whole = [row for row in rows if row["compiles"]]
    lines = [
        "# torchvision's classification networks",
        "",
        f"{len(rows)} of the {known} names that torchvision has were tried: "
        f"{sum(row['imports'] for row in rows)} import and {len(whole)} compile; "
        f"{sum(row['i8'] >= 0.99 for row in whole)} do at least 99 % of their multiply-accumulates in i8, and "
        f"{sum(row['float'] == 0 for row in whole)} have no operation in f32 between their first and last layer.",
        "",
        "Random weights; images of the given size; compiled for the machine that wrote this page by",
        "`python test/benchmark/networks.py`, which goes on with the names that are left by `--missing`.",
        "",
        "| network | pixels | i8 | in f32 | why |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(row) for row in rows)]) + "\n"


def _line(row: dict[str, Any]) -> str:
    if not row["compiles"]:
        stage = "compile" if row["imports"] else "import"
        return f"| {row['name']} | {row['size']} | | | does not {stage}: {row.get('error', '')} |"
    why = "; ".join(f"{count} × {what}" for what, count in sorted(row["why"].items(), key=lambda pair: -pair[1])[:4])
    return f"| {row['name']} | {row['size']} | {100 * row['i8']:.1f} % | {row['float'] or ''} | {why} |"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = torchvision().models
    names = known.list_models(module=known)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rows", type=Path, default=Path("docs/results/networks.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/networks.md"))
    parser.add_argument("--missing", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in names:
            parser.error(f"NAME: torchvision has no classification network '{name}'")
    rows = {row["name"]: row for row in json.loads(arguments.rows.read_text())} if arguments.rows.exists() else {}
    for name in arguments.names or names:
        if arguments.missing and name in rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measure(name, Path(folder))
        ordered = [rows[each] for each in names if each in rows]
        arguments.rows.write_text("[\n" + ",\n".join(json.dumps(row) for row in ordered) + "\n]\n")
        arguments.page.write_text(page(ordered, len(names)))
        print(_line(rows[name]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
