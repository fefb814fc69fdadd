"""The process that serves a contestant, seen from both of its ends."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from quantune.errors import RunFailed
from quantune.runtime.measure import Effort, measure, resident_bytes

from .values import Contestant

COMMAND = Path(__file__).resolve().parents[1] / "peers.py"
SETTLE_S = 0.03  # for the threads of the process measured before to stop spinning
ANSWER_TIMEOUT_S = 300.0  # for loading the model, the logits, or one call; the measuring time comes on top

Run = Callable[[np.ndarray], np.ndarray]
Caller = Callable[[np.ndarray], Callable[[], object]]


def open_compiled(file: str, threads: int) -> tuple[Run, Caller]:
    from quantune.runtime.program import Program

    program = Program(file, device="local-sync" if threads == 1 else "local-task", threads=threads)
    return program, program.caller


def open_onnxruntime(file: str, threads: int) -> tuple[Run, Caller]:
    import onnxruntime  # pyright: ignore[reportMissingImports]: a peer, installed for this script only

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
    import openvino  # pyright: ignore[reportMissingImports]: a peer, installed for this script only

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

    from quantune.torchvision_compat import torchvision

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
    """A contestant at work. Raises RunFailed when it ends before its time, or does not answer."""

    def __init__(self, contestant: Contestant, errors: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.contestant, self._errors, self._timeout_s = contestant, errors, timeout_s
        self.rounds: list[float] = []
        self.minimum = math.inf
        self.memory = (0, 0)
        threads = str(contestant.threads)
        job = ["--serve", contestant.engine, str(contestant.file), "--threads", threads]
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with errors.open("w") as log:
            self._child = subprocess.Popen(
                [sys.executable, str(COMMAND), *job],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
            )  # fmt: skip

    def request(self, job: dict[str, Any]) -> dict[str, Any]:
        """Send a job and wait for its answer."""
        assert self._child.stdin
        assert self._child.stdout
        try:
            print(json.dumps(job), file=self._child.stdin, flush=True)
            timeout_s = self._timeout_s + 2 * job.get("seconds", 0.0)
            if not select.select([self._child.stdout], [], [], timeout_s)[0]:
                raise RunFailed(f"{self.contestant} gave no answer within {timeout_s:g} s")
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self._errors.read_text(errors="replace").strip().splitlines() or ["no message"]
            raise RunFailed(f"{self.contestant} ended: {said[-1]}")
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
