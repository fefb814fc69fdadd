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
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantune.errors import QuantuneError, RunFailed, UsageError
from quantune.runtime.measure import Effort, measure, resident_bytes

MODELS = ("mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x1_0", "resnet18", "resnet50", "googlenet")
SHAPE = (3, 224, 224)
CALIBRATION_IMAGES, TEST_IMAGES = 8, 4
INT8 = "scheme=asymmetric,clip=max,granularity=channel"
IREE_INT8_TIMEOUT_S = 120.0
# Engine -> its precisions, and the packages that it needs beyond quantune's own.
ENGINES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "quantune": (("f32", "int8"), ()),
    "onnxruntime": (("f32", "int8"), ("onnxruntime", "onnx")),
    "openvino": (("f32", "int8"), ("openvino", "onnxruntime", "onnx")),
    "iree": (("f32", "int8"), ()),
    "torch": (("f32",), ()),
}
CPU_FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")
SETTLE_S = 0.03  # for the threads of the process measured before to stop spinning
RESAMPLES = 2000
SHOW_INTERVAL = 5  # rounds


@dataclass(frozen=True)
class Contestant:
    """One engine with one precision on one number of threads. file: the model as the engine reads it."""

    engine: str
    precision: str
    threads: int
    file: Path


@dataclass(frozen=True)
class Row:
    """What was measured of one contestant on one model.

    rounds_ms: one median for each round. ratio: quantune's time divided by this one's at the same precision and number
    of threads, with its 95 % interval. peak_mb, added_mb: peak resident memory of the process, and what of it came with
    the engine and the model. sqnr_db, top1: logits against those of torch in f32.
    """

    model: str
    engine: str
    precision: str
    threads: int
    ms: float
    spread_ms: float
    minimum_ms: float
    rounds_ms: tuple[float, ...]
    ratio: tuple[float, float, float] | None
    peak_mb: float
    added_mb: float
    sqnr_db: float
    top1: float


# Arithmetic


def round_order(count: int, number: int) -> list[int]:
    """Who runs after whom in round ``number``: forwards, backwards, forwards."""
    order = list(range(count))
    return order if number % 2 == 0 else order[::-1]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the medians and its 95 % interval, from resampling whole rounds: a slow moment stays on both sides."""
    pairs = np.array([ours, theirs])
    chosen = np.random.default_rng(0).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))
    medians = np.median(pairs[:, chosen], axis=2)
    low, high = np.percentile(medians[0] / medians[1], (2.5, 97.5))
    return float(np.median(pairs[0]) / np.median(pairs[1])), float(low), float(high)


def geomean(values: Iterable[float]) -> float:
    """Geometric mean; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """Power of the reference against the power of the difference, in decibels; infinite when they are equal."""
    noise = float(np.square(other.astype(np.float64) - reference).sum())
    return math.inf if noise == 0 else 10 * math.log10(float(np.square(reference.astype(np.float64)).sum()) / noise)


def selection(text: str) -> list[tuple[str, str]]:
    """Read ``quantune,openvino:int8`` as pairs of engine and precision; UsageError names an unknown one."""
    chosen = []
    for word in text.split(","):
        engine, _, precision = word.strip().partition(":")
        offered = ENGINES.get(engine, ((), ()))[0]
        if not offered or (precision and precision not in offered):
            known = " ".join(f"{name}:{p}" for name, (precisions, _) in ENGINES.items() for p in precisions)
            raise UsageError(f"--contestants {word}: expected engines or engine:precision of {known}")
        chosen += [(engine, p) for p in offered if not precision or p == precision]
    return chosen


def thread_counts(text: str) -> list[int]:
    """Read ``1,2``, in increasing order; UsageError for anything that is no number of threads."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"--threads {text}: expected numbers of threads such as 1 or 1,2")
    return sorted({int(word) for word in words})


def missing_packages(engine: str) -> list[str]:
    """The packages of an engine that are not installed."""
    return [package for package in ENGINES[engine][1] if importlib.util.find_spec(package) is None]


# The contestant's process

Run = Callable[[np.ndarray], np.ndarray]
Caller = Callable[[np.ndarray], Callable[[], object]]


def open_compiled(file: str, threads: int) -> tuple[Run, Caller]:
    from quantune.runtime.program import Program

    program = Program(file, device="local-sync" if threads == 1 else "local-task", threads=threads)
    return program, program.caller


def open_onnxruntime(file: str, threads: int) -> tuple[Run, Caller]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def caller(image: np.ndarray) -> Callable[[], object]:
        binding = session.io_binding()
        binding.bind_cpu_input("x", image)
        binding.bind_output("y")
        return lambda: session.run_with_iobinding(binding)

    return (lambda image: session.run(None, {"x": image})[0]), caller


def open_openvino(file: str, threads: int) -> tuple[Run, Caller]:
    import openvino

    core = openvino.Core()
    # Its default on some processors is bf16, which the others do not use.
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(file), "CPU", settings).create_infer_request()

    def caller(image: np.ndarray) -> Callable[[], object]:
        request.set_input_tensor(openvino.Tensor(image, shared_memory=True))
        return lambda: request.infer(share_outputs=True)

    return (lambda image: np.array(request.infer({0: image})[0])), caller


def open_torch(file: str, threads: int) -> tuple[Run, Caller]:
    import torch

    from quantune.frontend.torchvision_compat import torchvision

    torchvision()  # the pickled model names its classes
    torch.set_num_threads(threads)
    model = torch.load(file, weights_only=False)  # written by this script, into a folder of its own

    @torch.inference_mode()
    def forward(tensor: torch.Tensor) -> torch.Tensor:
        return model(tensor)

    def caller(image: np.ndarray) -> Callable[[], object]:
        tensor = torch.from_numpy(image)
        return lambda: forward(tensor)

    return (lambda image: forward(torch.from_numpy(image)).numpy()), caller


OPEN = {
    "quantune": open_compiled, "iree": open_compiled,
    "onnxruntime": open_onnxruntime, "openvino": open_openvino, "torch": open_torch,
}  # fmt: skip


def serve(engine: str, file: str, threads: int) -> int:
    """Answer jobs, one JSON object a line, until standard input ends: logits of images, or a slice of measuring."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to standard error
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    before, _ = resident_bytes()
    run, caller = OPEN[engine](file, threads)
    call = None
    for line in sys.stdin:
        job = json.loads(line)
        answer: dict[str, Any] = {}
        if "images" in job:
            images = np.load(job["images"])
            np.save(job["output"], np.concatenate([run(image[None]) for image in images]))
            call = caller(np.ascontiguousarray(images[:1]))
        elif call is not None:
            answer = asdict(measure([call], Effort(1, job["seconds"], job["seconds"] / 4))[0])
        _, peak = resident_bytes()
        print(json.dumps({**answer, "peak": peak, "before": before}), file=answers, flush=True)
    return 0


class Process:
    """A contestant at work. Raises RunFailed when it ends before its time."""

    def __init__(self, contestant: Contestant, errors: Path) -> None:
        self.contestant, self._errors = contestant, errors
        self.rounds: list[float] = []
        self.minimum = math.inf
        self.memory = (0, 0)
        threads = str(contestant.threads)
        command = [sys.executable, __file__, "--serve", contestant.engine, str(contestant.file), "--threads", threads]
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with errors.open("w") as log:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )

    def request(self, job: dict[str, Any]) -> dict[str, Any]:
        """Send a job and wait for its answer."""
        assert self._child.stdin
        assert self._child.stdout
        try:
            print(json.dumps(job), file=self._child.stdin, flush=True)
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self._errors.read_text(errors="replace").strip().splitlines() or ["no message"]
            raise RunFailed(f"{self.contestant.engine} {self.contestant.precision} ended: {said[-1]}")
        answer = json.loads(line)
        self.memory = answer["peak"], answer["before"]
        return answer

    def slice(self, seconds: float) -> None:
        """Measure for a while."""
        time.sleep(SETTLE_S)
        answer = self.request({"seconds": seconds})
        self.rounds.append(answer["medians"][0])
        self.minimum = min(self.minimum, answer["minimum"])

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.communicate()


# The contest


def calibration_source() -> Any:
    """Images of low and high frequencies, by index the same on every run."""
    from quantune.data.base import ImageSource

    class Images(ImageSource):
        """Noise of two scales."""

        name, shape, classes = "noise", SHAPE, 1000

        def __len__(self) -> int:
            return CALIBRATION_IMAGES + TEST_IMAGES

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            random = np.random.default_rng(index)
            coarse = random.standard_normal((3, 14, 14), np.float32).repeat(16, 1).repeat(16, 2)
            return (coarse + 0.5 * random.standard_normal(SHAPE, np.float32)), 0

    return Images()


def torch_model(name: str) -> Any:
    """The network with random weights, always the same, and calibrated batch norms."""
    import torch

    from quantune.frontend.models import calibrate_batch_norms
    from quantune.frontend.torchvision_compat import torchvision

    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}  # its own initialization takes minutes
    model = torchvision().models.get_model(name, weights=None, **options).eval()
    calibrate_batch_norms(model, SHAPE)
    return model


class Stable:
    """Makes the files of one model that the contestants run."""

    def __init__(self, name: str, folder: Path) -> None:
        import torch

        from quantune.api import ModelOptions, import_any
        from quantune.builder import Builder
        from quantune.compiler.cache import ArtifactCache
        from quantune.compiler.targets import Target
        from quantune.config import QuantConfig
        from quantune.data.splits import Split

        source = calibration_source()
        self.folder, self.network, self.seconds = folder, torch_model(name), dict[str, float]()
        self.images = np.stack([source[index][0] for index in range(len(source))])
        self._torch, self._configs = (
            torch,
            {p: QuantConfig.parse(c) for p, c in (("int8", INT8), ("f32", "precision=f32"))},
        )
        np.save(folder / "images.npy", self.images[CALIBRATION_IMAGES:])
        cache = ArtifactCache()
        imported = import_any(self.network, ModelOptions(shape=SHAPE), cache)
        split = Split(source, tuple(range(CALIBRATION_IMAGES)))
        sizes = (self._configs["int8"].calib,)
        self.builder = Builder(imported, Target("cpu"), calib=split, cache=cache, sizes=sizes)

    def artifact(self, precision: str) -> Any:
        """quantune's artifact."""
        return self.builder.artifact(self._configs[precision])

    def reference(self) -> np.ndarray:
        """The logits of torch for the test images."""
        with self._torch.inference_mode():
            return self.network(self._torch.from_numpy(self.images[CALIBRATION_IMAGES:])).numpy()

    def file(self, engine: str, precision: str) -> Path:
        """The model in the form that the engine reads."""
        if engine == "torch":
            path = self.folder / "model.pt"
            self._torch.save(self.network, path)
            return path
        if engine in ("onnxruntime", "openvino"):
            return self._onnx() if precision == "f32" else self._qdq()
        return self._compiled(engine, precision)

    def _compiled(self, engine: str, precision: str) -> Path:
        from quantune.compiler.iree import compile_module

        config, start = self._configs[precision], time.monotonic()
        if engine == "iree" and precision == "f32":
            module, passes = self.builder.model.bytecode, 0.0
        else:
            self.builder.plan(config)
            start = time.monotonic()
            module = self.builder.lower(config, until="vmfb" if engine == "quantune" else "integer").module
            passes = time.monotonic() - start
        timeout_s = IREE_INT8_TIMEOUT_S if (engine, precision) == ("iree", "int8") else 600.0
        program = compile_module(module, self.builder.target, timeout_s=timeout_s, cache=self.builder.cache)
        self.seconds[f"{engine} {precision}"] = passes + program.seconds
        return program.path

    def _onnx(self) -> Path:
        path = self.folder / "model.onnx"
        if not path.exists():
            example = (self._torch.zeros(1, *SHAPE),)
            names = {"input_names": ["x"], "output_names": ["y"]}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the exporter without further packages is an old one
                self._torch.onnx.export(self.network, example, str(path), dynamo=False, opset_version=17, **names)
        return path

    def _qdq(self) -> Path:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        path = self.folder / "model.qdq.onnx"
        if path.exists():
            return path
        images = iter([{"x": image[None]} for image in self.images[:CALIBRATION_IMAGES]])

        class Reader(quantization.CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(images, None)

        logging.getLogger().setLevel(logging.ERROR)
        # The exporter shares equal biases through Identity nodes; a convolution with such a bias would stay f32.
        cleaned = self.folder / "model.cleaned.onnx"
        quant_pre_process(str(self._onnx()), str(cleaned), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(cleaned), str(path), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        return path


def contest(
    name: str, wanted: list[tuple[str, str]], threads: list[int], rounds: int, seconds: float
) -> dict[str, Any]:
    """Everything measured on one model: rows, seconds of compilation, and why a contestant is missing."""
    started = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="quantune-peers-") as temporary:
        folder = Path(temporary)
        stable = Stable(name, folder)
        processes, absent = [], {}
        for engine, precision in wanted:
            try:
                file = stable.file(engine, precision)
            except Exception as error:  # whatever stops one contestant, the others run
                absent[f"{engine} {precision}"] = (str(error).strip() or type(error).__name__).splitlines()[0]
                continue
            contestants = (Contestant(engine, precision, count, file) for count in threads)
            processes += [Process(c, folder / f"{engine}.{precision}.{c.threads}.log") for c in contestants]
        try:
            reference = stable.reference()
            quality = {}
            for process in list(processes):
                try:
                    quality[process.contestant] = _quality(process, reference, folder)
                except RunFailed as error:
                    absent[f"{process.contestant.engine} {process.contestant.precision}"] = str(error)
                    processes.remove(process)
                    process.close()
            for number in range(rounds):
                for index in round_order(len(processes), number):
                    processes[index].slice(seconds)
        finally:
            for process in processes:
                process.close()
    ours = {(p.contestant.precision, p.contestant.threads): p.rounds for p in processes if _is_ours(p.contestant)}
    rows = [_row(name, process, ours, quality[process.contestant]) for process in processes]
    return {"rows": rows, "seconds": stable.seconds, "absent": absent, "load": (started, os.getloadavg()[0])}


def _quality(process: Process, reference: np.ndarray, folder: Path) -> tuple[float, float]:
    output = folder / "logits.npy"
    process.request({"images": str(folder / "images.npy"), "output": str(output)})
    logits = np.load(output)
    return sqnr_db(reference, logits), float((logits.argmax(1) == reference.argmax(1)).mean())


def _is_ours(contestant: Contestant) -> bool:
    return contestant.engine == "quantune"


def _row(name: str, process: Process, ours: dict[tuple[str, int], list[float]], quality: tuple[float, float]) -> Row:
    c, rounds = process.contestant, process.rounds
    mine = ours.get((c.precision, c.threads))
    low, middle, high = np.percentile(rounds, (25, 50, 75))
    peak, before = process.memory
    return Row(
        name, c.engine, c.precision, c.threads, float(middle), float(high - low), process.minimum, tuple(rounds),
        ratio(mine, rounds) if mine and not _is_ours(c) else None, peak / 1e6, (peak - before) / 1e6, *quality,
    )  # fmt: skip


def summarize(rows: list[Row], seconds: dict[str, dict[str, float]]) -> dict[str, tuple[float, str, float]]:
    """What is compared -> geometric mean over the models, the model with the largest ratio, and that ratio."""
    ms = {(r.model, r.engine, r.precision, r.threads): r.ms for r in rows}
    peak = {(r.model, r.engine, r.precision, r.threads): r.peak_mb for r in rows}
    found: dict[str, dict[str, float]] = {}

    def add(what: str, model: str, mine: float | None, theirs: float | None) -> None:
        if mine is not None and theirs is not None:
            found.setdefault(what, {})[model] = mine / theirs

    for model, engine, precision, threads in ms:
        text = f"{threads} thread{'s' * (threads > 1)}"
        mine = ("quantune", precision, threads)
        if engine != "quantune":
            add(
                f"{precision} / {engine} {precision}, {text}",
                model,
                ms.get((model, *mine)),
                ms[model, engine, precision, threads],
            )
            continue
        if precision == "int8":
            add(f"int8 / own f32, {text}", model, ms[model, *mine], ms.get((model, "quantune", "f32", threads)))
        else:
            others = [ms.get((model, peer, "f32", threads)) for peer in ("onnxruntime", "openvino")]
            best = min((value for value in others if value), default=None)
            add(f"f32 / faster of onnxruntime and openvino f32, {text}", model, ms[model, *mine], best)
        theirs = peak.get((model, "onnxruntime", precision, threads))
        add(f"peak memory, {precision} / onnxruntime, {text}", model, peak[model, *mine], theirs)
        if threads == 1:
            twice = ms.get((model, "quantune", precision, 2))
            add(f"{precision} 2 threads / 1 thread", model, twice, ms[model, *mine])
    for model, spent in seconds.items():
        for precision in ("f32", "int8"):
            own = spent.get(f"quantune {precision}")
            add(f"compile time, {precision} / iree f32", model, own, spent.get("iree f32"))
    worst = {what: max(values, key=lambda model: values[model]) for what, values in found.items()}
    return {w: (geomean(found[w].values()), worst[w], found[w][worst[w]]) for w in sorted(found)}


def per_layer(name: str, precision: str) -> list[dict[str, Any]]:
    """Dispatches of quantune's artifact, slowest first: layers, ms, share of the time, MMAC, GMAC/s; on one thread."""
    from quantune.runtime.benchmark import dispatch_times

    with tempfile.TemporaryDirectory(prefix="quantune-peers-") as temporary:
        artifact = Stable(name, Path(temporary)).artifact(precision)
        times = dispatch_times(artifact.save(Path(temporary) / "model.vmfb"), min_seconds=2.0)
    total = sum(times.values())
    rows = []
    for dispatch, ms in sorted(times.items(), key=lambda item: -item[1]):
        layers = [layer for layer in artifact.layers if layer.dispatch == dispatch]
        macs = sum(layer.macs for layer in layers)
        names = ", ".join(layer.layer or layer.op for layer in layers) or dispatch
        rows.append(
            {"dispatch": dispatch, "layers": names, "ms": ms, "share": ms / total, "mmac": macs / 1e6,
             "gmac_per_s": macs / ms / 1e6}
        )  # fmt: skip
    return rows


# Output


def environment() -> dict[str, Any]:
    """Where the numbers come from: machine with load, the processor's features, versions of all engines."""
    from quantune.cli.benchmark import machine
    from quantune.versions import versions

    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.is_file() else set()
    known = versions()
    for package in ("torchvision", "onnxruntime", "openvino", "onnx"):
        if importlib.util.find_spec(package):
            known[package] = importlib.metadata.version(package)
    return {"machine": machine(), "flags": [flag for flag in CPU_FLAGS if flag in words], "versions": known}


def show(report: dict[str, Any], rows: list[Row]) -> None:
    """A table for each precision and number of threads, memory and numerics, and the geometric means."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    for precision in ("f32", "int8"):
        for threads in sorted({row.threads for row in rows}):
            part = [row for row in rows if (row.precision, row.threads) == (precision, threads)]
            title = f"{precision}, {threads} thread{'s' * (threads > 1)}"
            _print_matrix(console, title, part, _speed_cell)
        part = [row for row in rows if row.precision == precision and row.threads == max(r.threads for r in rows)]
        _print_matrix(console, f"{precision}, memory and numerics", part, _memory_cell)
    console.print(
        "Cells of times: ms ± half the distance of the quartiles of the rounds; quantune's time / this one's (95 %)."
    )
    console.print(
        "Cells of memory: peak MB of the process (of it engine and model); logits against torch f32, same top-1."
    )
    lines = [(what, f"{mean:.3f}", f"{worst:.3f} {model}") for what, (mean, model, worst) in report["summary"].items()]
    _print_table(console, "quantune, geometric means over the models", ("ratio of", "geomean", "largest"), lines)
    for model, spent in report["seconds"].items():
        console.print(f"{model}: compiled in " + ", ".join(f"{what} {value:.1f} s" for what, value in spent.items()))
    for model, reasons in report["absent"].items():
        for what, reason in reasons.items():
            console.print(f"{model}: without {what}: {reason}", markup=False)


def _speed_cell(row: Row) -> str:
    time_ = f"{row.ms:.2f} ±{row.spread_ms / 2:.2f}"
    if row.ratio is None:
        return time_
    # Few rounds give an interval that is too narrow to be shown.
    interval = " ({:.2f}-{:.2f})".format(*row.ratio[1:]) if len(row.rounds_ms) >= SHOW_INTERVAL else ""
    return f"{time_}\n{row.ratio[0]:.2f}{interval}"


def _memory_cell(row: Row) -> str:
    return f"{row.peak_mb:.0f} ({row.added_mb:.0f})\n{row.sqnr_db:.1f} dB, {row.top1:.0%}"


def _print_matrix(console: Any, title: str, rows: list[Row], cell: Callable[[Row], str]) -> None:
    if not rows:
        return
    engines = [engine for engine in ENGINES if any(row.engine == engine for row in rows)]
    cells = {(row.model, row.engine): cell(row) for row in rows}
    lines = [[m, *(cells.get((m, e), "-") for e in engines)] for m in dict.fromkeys(row.model for row in rows)]
    means = {e: geomean(row.ratio[0] for row in rows if row.engine == e and row.ratio) for e in engines}
    if cell is _speed_cell and len(lines) > 1:
        lines.append(["geometric mean", *("" if math.isnan(m) else f"{m:.3f}" for m in means.values())])
    _print_table(console, title, ["model", *engines], lines)


def _print_table(console: Any, title: str, headings: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def show_layers(rows: list[dict[str, Any]]) -> None:
    """One line for each dispatch, and the sums."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    total = {key: sum(row[key] for row in rows) for key in ("ms", "share", "mmac")}
    every = [*rows, {"layers": "all", **total, "gmac_per_s": total["mmac"] / max(total["ms"], 1e-9)}]
    lines = [
        (r["layers"], f"{r['ms']:.4f}", f"{r['share']:.1%}", f"{r['mmac']:.2f}", f"{r['gmac_per_s']:.0f}")
        for r in every
    ]
    _print_table(console, "quantune, 1 thread", ("layers", "ms", "share", "MMAC", "GMAC/s"), lines)


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
        layers = per_layer(name, precision or "int8")
        show_layers(layers)
        _write(arguments.json, {**where, "layers": layers})
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
    parser.add_argument("--per-layer", metavar="MODEL[:f32]", help="GMAC/s of quantune's dispatches instead")
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
