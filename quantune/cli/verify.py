"""quantune-verify: check that an artifact is whole, is what its record says, and does here what was measured.

One line a check. Exit codes for a gate: 0 all held, 1 one failed, 2 wrong request, 4 it cannot be run here (or on the
device that --device names).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from quantune.cli.arguments import OneLineParser, count, number, seconds, version_line
from quantune.cli.entry import quantune_verify, run
from quantune.cli.streams import Notes, one_line
from quantune.errors import EnvironmentFailure
from quantune.process import places
from quantune.verification import FAILED, HELD, LACKING, TIMEOUT_S, Wanted, verify, worst

_CODES = {HELD: 0, FAILED: 1, LACKING: EnvironmentFailure.exit_code}


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run("quantune-verify", command, argv)


def command(argv: list[str] | None, notes: Notes) -> int:
    """What the command does; its errors are told by `quantune.cli.entry`."""
    options = _parser().read(argv)
    notes.errors_only()  # that there is no record is a line
    wanted = Wanted(
        sha256=options.sha256,
        evaluation=options.eval,
        max_drop=options.max_drop,
        min_accuracy=options.min_accuracy,
        max_latency_ms=options.max_latency,
        min_integers=options.min_integers,
        threads=options.threads,
        device=options.device,
        timeout_s=options.timeout,
    )
    if options.json and options.json != "-":
        places.file(options.json, "--json")
    checks = []
    for check in verify(options.artifact, wanted):
        checks.append(check)
        if options.json != "-":
            print(f"{check.outcome:<8} {check.name:<10} {one_line(check.text)}", flush=True)
    outcome = worst(checks)
    if options.json:
        report = {"artifact": str(options.artifact), "outcome": outcome, "checks": [asdict(each) for each in checks]}
        text = json.dumps(report, indent=1) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            places.write(options.json, text.encode(), "--json")
    return _CODES[outcome]


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="quantune-verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=version_line())
    parser.add_argument(
        "artifact", type=Path, metavar="A.vmfb", help="best.json beside a best.vmfb is compared with it"
    )
    parser.add_argument("--sha256", metavar="DIGEST", help="of the file, as sha256sum prints it")
    parser.add_argument("--eval", metavar="DATA", help="the labelled images that it was measured on")
    parser.add_argument(
        "--max-drop", type=number, metavar="X", help="largest loss of top-1 against the record (default: one image)"
    )
    parser.add_argument("--min-accuracy", type=number, metavar="X", help="least top-1, such as 0.9")
    parser.add_argument("--max-latency", type=_milliseconds, metavar="TIME", help="largest median: 5ms, 0.2s")
    parser.add_argument("--min-integers", type=number, metavar="X", help="least share of integer multiplications")
    parser.add_argument("--threads", type=count, default=1, metavar="N", help="for the latency (default: 1, pinned)")
    parser.add_argument(
        "--device", metavar="URI", help="local-sync, vulkan://…, tcp://HOST:PORT, … (default: by target)"
    )
    parser.add_argument("--timeout", type=number, metavar="SECONDS", help=f"for one run here (default: {TIMEOUT_S:g})")
    parser.add_argument("--json", metavar="FILE", help="write the checks; - for standard output instead of the lines")
    return parser


def _milliseconds(text: str) -> float:
    value = seconds(text)
    if value is None or not text.strip().endswith(("s", "m", "h")):
        raise argparse.ArgumentTypeError(f"'{text}': expected a time such as 5ms or 0.2s")
    return value * 1e3


if __name__ == "__main__":
    quantune_verify()
