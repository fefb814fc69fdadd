"""quantune against other engines on six CNNs: latency, memory and numerics, all of them interleaved in one run.

  python test/benchmark/peers.py [--models resnet18,…] [--threads 1,2] [--contestants quantune,openvino:int8] [--json F]
  python test/benchmark/peers.py --per-layer resnet18[:f32]

Images are 3x224x224, one a call; weights are random, batch norms hold the statistics of their own activations. The int8
contestants calibrate on the same images; ONNX Runtime and OpenVINO run the same QDQ model (u8 activations, s8 weights,
per channel). "iree" is its default path on the same import: f32, and quantune's integers without quantune's layout and
kernels. Every contestant lives in a process of its own, limited to as many processors as it has threads. A ratio is
quantune's time divided by the other's: below 1, quantune is faster.

The other engines are needed by this script only: pip install onnxruntime openvino onnx
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers_lib.contest import contest
from peers_lib.contestants import serve
from peers_lib.layers import per_layer
from peers_lib.machine import clock, peak
from peers_lib.output import environment, show, show_layers
from peers_lib.values import ENGINES, Row, missing_packages, selection, summarize, thread_counts

from quantune.errors import QuantuneError, UsageError

MODELS = ("mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x1_0", "resnet18", "resnet50", "googlenet")


def _names(text: str, known: Sequence[str], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"{option} {unknown[0]}: expected names of {', '.join(known)}")
    return names


def _run(arguments: argparse.Namespace) -> None:
    where = environment()
    print(f"{where['machine']}; {' '.join(where['flags'])}")
    print(", ".join(f"{name} {version}" for name, version in where["versions"].items()), flush=True)
    if arguments.per_layer:
        name, _, precision = arguments.per_layer.partition(":")
        _names(name, MODELS, "--per-layer")
        _names(precision or "int8", ("int8", "f32"), "--per-layer")
        best = peak(precision or "int8", where["flags"], clock())
        layers = per_layer(name, precision or "int8", best)
        show_layers(layers, best)
        _write(arguments.json, {**where, "peak": best and asdict(best), "layers": layers})
        return
    wanted = selection(arguments.contestants)
    for engine in dict.fromkeys(engine for engine, _ in wanted):
        if packages := missing_packages(engine):
            print(f"{engine}: skipped, not installed: pip install {' '.join(packages)}")
            wanted = [pair for pair in wanted if pair[0] != engine]
    if not wanted:
        raise UsageError("--contestants: none of them is installed")
    threads = thread_counts(arguments.threads)
    if arguments.rounds < 1:
        raise UsageError(f"--rounds {arguments.rounds}: expected 1 or more")
    rows: list[Row] = []
    report: dict[str, Any] = {**where, "rounds": arguments.rounds, "seconds": {}, "absent": {}, "load": {}}
    for name in _names(arguments.models, MODELS, "--models"):
        start = time.monotonic()
        found = contest(name, wanted, threads, arguments.rounds, arguments.slice)
        rows += found.pop("rows")
        for key, value in found.items():
            report[key][name] = value
        print(f"{name}: {time.monotonic() - start:.0f} s, load {found['load'][1]:.1f}", file=sys.stderr, flush=True)
        report["summary"] = summarize(rows, report["seconds"])
        _write(arguments.json, {**report, "rows": [asdict(row) for row in rows]})
    show(report, rows)


def _write(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--contestants", default=",".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--slice", type=float, default=0.15, metavar="SECONDS", help="of a contestant in a round")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--per-layer", metavar="MODEL[:f32]", help="GMAC/s of quantune's dispatches instead, and of the peak"
    )
    parser.add_argument("--serve", nargs=2, metavar=("ENGINE", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.serve:
        engine, file = arguments.serve
        return serve(engine, file, int(arguments.threads))
    try:
        _run(arguments)
    except QuantuneError as error:
        print(f"peers.py: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
