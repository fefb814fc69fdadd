"""quantune-benchmark: the latency, memory and size of artifacts, side by side."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantune.artifact.records import integer_share
from quantune.cli import entry
from quantune.cli.arguments import OneLineParser, count, number, seconds, version_line
from quantune.cli.entry import run
from quantune.cli.streams import Notes
from quantune.device.address import SCHEME
from quantune.device.client import Device
from quantune.errors import UsageError
from quantune.process import places
from quantune.runtime.artifact import Artifact, load
from quantune.runtime.benchmark import Bench, Comparison, LocalBench, compare
from quantune.runtime.measure import Effort
from quantune.versions import versions


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code: 0, 1 failed, 2 bad request, 4 no such device, 130 interrupted."""
    return run("quantune-benchmark", command, argv)


def command(argv: list[str] | None, notes: Notes) -> int:
    """What the command does; its errors are told by `quantune.cli.entry`."""
    options = _parser().read(argv)
    notes.errors_only()  # what artifacts warn of is a line under the table
    _run(options)
    return 0


def _run(options: argparse.Namespace) -> None:
    threads = _thread_counts(options.threads)
    if options.json and options.json != "-":
        places.file(options.json, "--json")
    effort = Effort(repetitions=options.repetitions, min_seconds=_seconds(options.min_time))
    with contextlib.ExitStack() as held:
        bench, device = None, options.device
        if device is not None and device.startswith(SCHEME):
            bench, device = held.enter_context(contextlib.closing(Device(device))), None
        artifacts = [load(name, device=device) for name in options.artifacts]
        rounds = [
            compare(
                artifacts,
                threads=count,
                device=device,
                effort=effort,
                images=options.input,
                timeout_s=options.timeout,
                bench=bench,
            )
            for count in threads
        ]
        seconds = min(max(effort.min_seconds, 0.01), 60.0)
        layers = [_layer_rows(artifact, seconds, bench) for artifact in artifacts] if options.per_layer else []
        where = machine() if bench is None else bench.identity
    if options.json != "-":
        _print(rounds, artifacts, layers, where)
    if options.json:
        report = {"machine": where, "comparisons": [asdict(r) for r in rounds], "layers": layers}
        text = json.dumps(report, indent=1) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            places.write(options.json, text.encode(), "--json")


def machine() -> str:
    """One line that says where the numbers come from: processor, its count, system, IREE version."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file() and (match := re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE)):
        name = match.group(1)
    load_average = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    iree = versions()["iree-base-runtime"]
    return f"{name}, {os.cpu_count()} processors{load_average}, {platform.system()} {platform.machine()}, IREE {iree}"


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="quantune-benchmark",
        description="Measure compiled artifacts; several are measured in turn, slice by slice, against the first.",
    )
    parser.add_argument("--version", action="version", version=version_line())
    parser.add_argument("artifacts", nargs="+", metavar="A.vmfb")
    parser.add_argument(
        "--threads", default="1", metavar="N,…", help="thread counts, each measured (default: 1, pinned)"
    )
    parser.add_argument("--repetitions", type=count, default=10, metavar="N", help="interleaved slices (default: 10)")
    parser.add_argument("--min-time", default="1s", metavar="TIME", help="for each artifact: 1s, 500ms (default: 1s)")
    parser.add_argument("--input", type=Path, metavar="FILE.npy", help="images f32[n,c,h,w] (default: noise)")
    parser.add_argument(
        "--device", metavar="URI", help="local-sync, vulkan://…, … or tcp://HOST:PORT (default: by target)"
    )
    parser.add_argument(
        "--timeout", type=number, default=600.0, metavar="SECONDS", help="for one comparison (default: 600)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers; - for standard output instead of the table")
    parser.add_argument("--per-layer", action="store_true", help="what each layer runs in, and its time")
    return parser


def _thread_counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(re.fullmatch(r" *0*[1-9]\d{0,3} *", part, re.ASCII) for part in parts):
        raise UsageError(f"--threads {text}: expected numbers of threads such as 1 or 1,2,4")
    return tuple(int(part) for part in parts)


def _seconds(text: str) -> float:
    value = seconds(text)
    if value is None:
        raise UsageError(f"--min-time {text}: expected a time such as 1s, 500ms or 2m")
    return value


def _layer_rows(artifact: Artifact, min_seconds: float, bench: Bench | None) -> list[dict[str, Any]]:
    """The layers of an artifact with their milliseconds; None where the device tells no times.

    Layers that share one compiled function share its time, in proportion to their multiplications.
    """
    assert artifact.path is not None
    times = (bench or LocalBench(artifact.device)).dispatch_times(artifact.path, min_seconds=min_seconds)
    shared: dict[str, int] = {}
    for layer in artifact.layers:
        shared[layer.dispatch] = shared.get(layer.dispatch, 0) + layer.macs
    return [
        asdict(layer) | {"ms": _part(times.get(layer.dispatch), layer.macs, shared[layer.dispatch])}
        for layer in artifact.layers
    ]


def _part(total: float | None, macs: int, all_macs: int) -> float | None:
    return None if total is None else total * macs / max(all_macs, 1)


def _print(rounds: list[Comparison], artifacts: list[Artifact], layers: list[list[dict[str, Any]]], where: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    names = _short_names([str(artifact.path) for artifact in artifacts])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("artifact", overflow="fold", min_width=14)
    for heading in ("threads", "ms", "± ms", "speed-up", "95 %", "MB", "RSS MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for compared in rounds:
        for index, (timing, speedup) in enumerate(zip(compared.timings, compared.speedups, strict=True)):
            table.add_row(
                Text(names[index]),
                str(timing.threads),
                f"{timing.median_ms:.3f}",
                f"{timing.spread_ms / 2:.3f}",
                f"{speedup.value:.2f}",
                f"{speedup.low:.2f}-{speedup.high:.2f}" if index else "",
                f"{artifacts[index].size_bytes / 1e6:.2f}",
                f"{timing.resident_bytes / 1e6:.0f}",
            )
    console.print(table)
    for name, artifact, rows in zip(names, artifacts, layers, strict=False):
        _print_layers(console, name, artifact, rows)
    for name, artifact in zip(names, artifacts, strict=True):
        if not artifact.provenance:
            console.print(f"{name}: no provenance: a .vmfb of another origin, its bytes are not checked")
    timing = rounds[0].timings[0]
    console.print(f"{where}; device {timing.device}, {timing.repetitions} interleaved slices")


def _short_names(names: list[str]) -> list[str]:
    """The file names, or the whole paths where two files have the same name."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) else names


def _print_layers(console: Any, name: str, artifact: Artifact, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        console.print(f"{name}: no table of layers: the file does not say what they are")
        return
    console.print(f"layers of {name}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("op")
    table.add_column("runs in")
    table.add_column("MMAC", justify="right")
    table.add_column("ms", justify="right")
    for row in rows:
        time = "-" if row["ms"] is None else f"{row['ms']:.4f}"
        label = Text(row["layer"] or row["dispatch"])
        table.add_row(label, row["op"], row["precision"], f"{row['macs'] / 1e6:.3f}", time)
    console.print(table)
    console.print(f"{integer_share(artifact.layers):.1%} of the multiplications are integer ones")
    if all(row["ms"] is None for row in rows):
        console.print(f"the device {artifact.device} gives no time for single dispatches")


if __name__ == "__main__":
    entry.quantune_benchmark()
