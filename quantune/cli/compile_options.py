"""The command line of quantune-compile."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from quantune.cli.arguments import OneLineParser, count, number, seconds, version_line

EPILOG = """\
models    torchvision:NAME  builtin:NAME_shapes  PKG.MOD:FACTORY  FILE.pt2  FILE.onnx  FILE.mlir  FILE.mlirbc
data      builtin:shapes  builtin:digits  imagefolder:DIR?resize=256&crop=224  npz:FILE  PKG.MOD:FACTORY
          (?count=N limits any of them)
targets   {targets}

exit codes  0 done   1 failed   2 wrong request   3 nothing keeps the accuracy bound (best effort written)
            4 the machine lacks something   130 interrupted (143 by SIGTERM, 129 by SIGHUP), state saved:
            the same command resumes

example
  quantune-compile builtin:mobilenet_v2_shapes --calib builtin:shapes --eval builtin:shapes --max-trials 16 -o out
"""


def parser() -> OneLineParser:
    """The command line, for help and for its tests."""
    from quantune.compiler.targets import BACKENDS

    top = OneLineParser(
        prog="quantune-compile",
        description="a model, images and a target in; the best quantized artifact that keeps the accuracy budget out",
        epilog=EPILOG.format(targets="  ".join(f"{each.name} ({each.option})" for each in BACKENDS.values())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("model", nargs="?", help="what to compile, see below")
    top.add_argument(
        "-o",
        "--output",
        default=None,
        help="folder of the results (default quantune-out), or a file with --config or --emit",
    )
    top.add_argument("--version", action="version", version=version_line())
    model = top.add_argument_group("model")
    model.add_argument("--weights", type=Path, metavar="FILE", help="state dict, .safetensors or .pth")
    model.add_argument("--image-shape", type=_shape, metavar="C,H,W", help="default: the evaluation images' own shape")
    model.add_argument("--classes", type=count, metavar="N", help="outputs of a torchvision model")
    model.add_argument(
        "--batch", type=count, default=1, metavar="N", help="images in one call of the artifact (default 1)"
    )
    data = top.add_argument_group("images")
    data.add_argument("--calib", metavar="DATA", help="calibration images")
    data.add_argument("--eval", metavar="DATA", help="labelled evaluation images")
    target = top.add_argument_group("target")
    *names, last = BACKENDS
    target.add_argument("--target", metavar="T", help=f"{', '.join(names)} or {last} (default cpu)")
    for each in BACKENDS.values():
        target.add_argument(each.option, metavar=each.metavar, dest=f"target_{each.field}", help=each.help)
    target.add_argument("--threads", type=count, metavar="N", help="processor threads for the latency (default 1)")
    target.add_argument(
        "--device", metavar="URI", help="compile for and measure on a device: tcp://HOST:PORT (quantune-device serve)"
    )
    target.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="of each compiler and worker, such as 2GB, or none (default: by the machine)",
    )
    search = top.add_argument_group("search")
    search.add_argument("--objective", metavar="M", help="accuracy (default), latency or size")
    search.add_argument(
        "--metric",
        metavar="NAME",
        help="what accuracy means: top-1 (default), top-5, mIoU, mse, psnr, or a distance to f32 that needs no labels: "
        "kl, sqnr, cosine; or PKG.MOD:FUNCTION",
    )
    search.add_argument("--max-drop", type=number, metavar="X", help="largest loss of it; of a share a fraction (0.01)")
    search.add_argument("--max-relative-drop", type=number, metavar="X", help="instead: as a fraction of what f32 has")
    search.add_argument("--max-trials", type=count, metavar="N", help="configurations to measure (default: all)")
    search.add_argument(
        "--space",
        metavar="NAME",
        help="paper (default): 96 configurations; wide: all clip rules, weight ranges and bias correction too, 2160",
    )
    search.add_argument("--time-budget", type=_seconds, metavar="TIME", help="such as 90s, 10m or 1h")
    search.add_argument("--sampler", metavar="S", help="xgboost (default), random, grid, genetic or tpe")
    search.add_argument("--seed", type=count, metavar="N")
    search.add_argument(
        "--no-transfer", action="store_true", default=None, help="search without what was measured on other models"
    )
    search.add_argument(
        "--no-early-stop",
        action="store_true",
        default=None,
        help="measure every trial on all images, hopeless ones too",
    )
    search.add_argument(
        "--storage", metavar="URL", help="a database that workers share instead of OUT/study.db (docs/workers.md)"
    )
    search.add_argument(
        "--retry-failed", action="store_true", default=None, help="measure again what failed or was given up"
    )
    search.add_argument(
        "--evaluate-on",
        metavar="WHERE",
        help="where accuracy is counted: here, device or dask://HOST:PORT (default: here if possible)",
    )
    bits = top.add_argument_group("bits")
    bits.add_argument("--weight-bits", type=count, metavar="N", help="bits of all weights, 2 to 8 (default 8)")
    bits.add_argument(
        "--size-budget", metavar="SIZE", help="of all weights, such as 1.2MB or 0.5x of eight bits: bits layer by layer"
    )
    bits.add_argument(
        "--smallest-within",
        type=number,
        metavar="X",
        help="the smallest artifact that loses at most so much top-1, as a fraction: no size to guess",
    )
    bits.add_argument("--score", metavar="NAME", help="how a layer's bits are judged (default sqnr; docs/bits.md)")
    bits.add_argument("--propose", metavar="NAME", help="optimal (default), greedy, list, uniform or random")
    bits.add_argument("--walk", metavar="NAME", help="to the smallest: bisection (default), interpolation, brute-force")
    bits.add_argument("--formats", metavar="NAMES", help="what layers may have beside widths, such as w2h,w3k,e2m1")
    one = top.add_argument_group("without a search")
    one.add_argument("--config", metavar="LINE", help="build this one: scheme=asymmetric,clip=kl,precision=int8 …")
    one.add_argument(
        "--mode", metavar="M", help="search (default), or local: the worst layers stay in f32, by two passes, no labels"
    )
    one.add_argument("--target-sqnr", type=number, metavar="DB", help="of the result, with --mode local (default 30)")
    one.add_argument("--max-slowdown", type=number, metavar="X", help="with --mode local: such as 1.1 times slower")
    one.add_argument(
        "--like",
        type=Path,
        metavar="FILE",
        help="make this artifact again from its record, and say whether it is equal",
    )
    one.add_argument(
        "--emit",
        choices=("linalg", "qdq", "integer", "vmfb"),
        metavar="STAGE",
        help="stop at linalg, qdq, integer or vmfb",
    )
    one.add_argument("--print-ir-after-all", action="store_true", help="the IR after each pass, on stderr")
    one.add_argument("--dump-ir-dir", type=Path, metavar="DIR", help="the IR after each pass, as files")
    top.add_argument("--export", metavar="FORMAT", help="hand out in this format too: qdq-onnx, beside best.vmfb")
    top.add_argument("-q", "--quiet", action="store_true", help="no progress, only the result")
    top.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    return top


def _shape(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[1-9]\d{0,5},[1-9]\d{0,5},[1-9]\d{0,5}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"'{text}': expected channels,height,width such as 3,224,224")
    c, h, w = map(int, text.split(","))
    return c, h, w


def _seconds(text: str) -> float:
    value = seconds(text)
    if not value:
        raise argparse.ArgumentTypeError(f"'{text}': expected a time such as 90s, 10m or 1h")
    return value
