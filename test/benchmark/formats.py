"""How well formats of weights keep a network's weights: SQNR by format, layer and rule, and the bytes they take.

  python test/benchmark/formats.py [MODEL …] [--formats NAME,…] [--rules max,mse] [--granularity channel] [--layers]

A figure is the median over a network's layers of 10 log10(sum of w**2 / sum of (w - w')**2) in dB; with --layers there
is a row for each layer. The rule power needs images and is not measured here. Nothing is compiled; what the formats are
worth in accuracy is measured by refinement.py with lines such as bits=w2h,weight_clip=mse.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from mlir_passes.network import Network
from quantune.api import ModelOptions, import_any
from quantune.cache import ArtifactCache
from quantune.numerics.affine import dequantize, quantize
from quantune.numerics.formats import FORMATS
from quantune.numerics.schemes import SCHEMES

MODELS = ("builtin:mobilenet_v2_shapes", "builtin:squeezenet1_1_shapes", "builtin:shufflenet_v2_x1_0_shapes")
RULES = ("max", "mse")


def sqnr(network: Network, name: str, granularity: str, rule: str) -> dict[str, float]:
    """Layer -> SQNR of its weight in dB."""
    found = {}
    for node in network.layers:
        assert node.weight is not None
        params = FORMATS[name].params(node.weight, granularity, SCHEMES["asymmetric"].weights, rule)
        exact = node.weight.astype(np.float64)
        noise = np.square(exact - dequantize(quantize(node.weight, params), params)).sum()
        found[node.name] = 10 * np.log10(max(np.square(exact).sum(), 1e-300) / max(noise, 1e-300))
    return found


def measure(models: list[str], names: list[str], granularity: str, rules: list[str], *, by_layer: bool) -> Table:
    """A row for each format, or for each format and layer; a column for each model and rule."""
    table = Table("format", "bits", *(["layer"] if by_layer else []), show_edge=False)
    networks = {model: import_any(model, ModelOptions(), ArtifactCache()).network for model in models}
    for model in models:
        for rule in rules:
            table.add_column(f"{model.removeprefix('builtin:')} {rule}", justify="right")
    for name in names:
        columns = [sqnr(network, name, granularity, rule) for network in networks.values() for rule in rules]
        bits = str(FORMATS[name].bits)
        if not by_layer:
            table.add_row(name, bits, *(f"{np.median(list(column.values())):.1f}" for column in columns))
            continue
        for layer in dict.fromkeys(layer for column in columns for layer in column):
            table.add_row(name, bits, layer, *(f"{column[layer]:.1f}" if layer in column else "" for column in columns))
    return table


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    ordered = sorted((name for name, form in FORMATS.items() if form.bits <= 4), key=lambda name: FORMATS[name].bits)
    parser.add_argument("--formats", default=",".join(ordered), help="by their names in bits=")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--granularity", default="channel", choices=("channel", "tensor"))
    parser.add_argument("--layers", action="store_true", help="a row for each layer")
    arguments = parser.parse_args(argv)
    names, rules = arguments.formats.split(","), arguments.rules.split(",")
    unknown = [name for name in names if name not in FORMATS] + [rule for rule in rules if rule not in RULES]
    if unknown:
        parser.error(f"'{unknown[0]}' is unknown; formats are {', '.join(FORMATS)}, rules {', '.join(RULES)}")
    table = measure(arguments.models, names, arguments.granularity, rules, by_layer=arguments.layers)
    Console(width=160).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
