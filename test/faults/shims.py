"""Programs that stand in the place of the compiler and of a worker, and what they do wrong.

A shim does it once, to the first process or run that comes, or always: ``FAULT_MARK`` names a file that the first one
creates. Everything else is handed to the real program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from searching import Search

PATIENCE = {"FAULT_PATIENCE": "30"}
"""Seconds that a child is waited for; minutes, where nothing hangs."""

# What the compiler does instead of compiling; $out is the file it is to write, compile does the real work.
COMPILER = {
    "segmentation fault": "kill -SEGV $$",
    "abort": "kill -ABRT $$",
    "kill -9": "kill -9 $$",
    "exit status 3 without a word": "exit 3",
    "an error and exit status 1": "echo 'module.mlir:3:7: error: failed to legalize operation' >&2; exit 1",
    "an error and exit status 0": "echo 'error: something is not supported' >&2",
    "exit status 0 and no file": ":",
    "an empty file": ": > $out",
    "half a file": 'compile "$@"; head -c $(($(stat -c %s $out) / 2)) $out > $out.half; mv $out.half $out',
    "noise behind the magic": 'compile "$@"; (head -c 64 $out; head -c 20000 /dev/zero) > $out.a; mv $out.a $out',
    "another file": "echo '<html>no program</html>' > $out",
    "a flood of warnings": 'yes "warning: nothing" | head -c 30000000; compile "$@"',
    "bytes that are no text": 'printf "\\377\\376\\000\\200" >&2; kill -9 $$',
    "no memory": 'ulimit -v 20000; compile "$@"',
    "hang": "sleep 3600",
    "a full disk": "echo 'error: IO failure on output stream: No space left on device' >&2; exit 1",
}

# Does $FAULT once or always; the output is the word behind -o.
COMPILER_SHIM = """#!/bin/sh
compile() {{ "$REAL_COMPILER" "$@"; }}
case "$*" in *--version*) exec "$REAL_COMPILER" "$@";; esac
if [ -n "$FAULT_MARK" ] && ! mkdir "$FAULT_MARK" 2>/dev/null; then exec "$REAL_COMPILER" "$@"; fi
previous= out=
for word in "$@"; do [ "$previous" = -o ] && out=$word; previous=$word; done
{fault}
"""

# What a child of Python does at a job instead of doing it; answer(...) writes a line of its own.
CHILD = {
    "segmentation fault": "os.kill(os.getpid(), signal.SIGSEGV)",
    "kill -9": "os.kill(os.getpid(), signal.SIGKILL)",
    "exit status 0": "os._exit(0)",
    "no memory": "bytearray(2**60)",
    "noise instead of an answer": "answer('Loading model... done')",
    "half an answer": "os.write(OUT, b'{'); os._exit(1)",
    "an answer of another form": "answer('[1, 2, 3]')",
    "bytes that are no text": "os.write(OUT, bytes([255, 254, 10]))",
    "an error that nobody knows": "answer(json.dumps(dict(error='Nonsense', message='of a child')))",
    "a flood of words": "os.write(OUT, b'x' * (1 << 24)); os._exit(1)",
    "hang": "time.sleep(3600)",
}

# What only those do that write results.
EVALUATOR = CHILD | {
    "an answer without the results": "answer(DONE)",
    "results of another shape": "np.save(job['output'], np.zeros((1, 2, 3), np.float32)); answer(DONE)",
    "results that are text": "np.save(job['output'], np.full((250, 4), 'x')); answer(DONE)",
    "results that are no array": "open(job['output'], 'wb').write(b'nothing'); answer(DONE)",
    "results in an archive": "np.savez(open(job['output'], 'wb'), x=np.zeros(3)); answer(DONE)",
    "half of the results": "np.save(job['output'], np.zeros((3, 4), np.float32)); answer(DONE)",
    "results that are not finite": "np.save(job['output'], np.full((250, 4), np.nan, np.float32)); answer(DONE)",
    "closing its pipe": "os.close(OUT); time.sleep(3600)",
}
TIMER = CHILD | {
    "no samples": "answer(DONE)",
    "samples of words": "answer(json.dumps(dict(result=dict(samples=['fast']))))",
    "too few samples": "answer(json.dumps(dict(result=dict(samples=[]))))",
    "samples without times": "answer(json.dumps(dict(result=dict(samples=[dict(quartiles=[None] * 3)]))))",
}
READER = CHILD | {
    "no module": "answer('{}')",
    "a module of noise": "open(sys.argv[2], 'wb').write(b'ML' + bytes(range(250))); answer('{}')",
    "half an error": "answer(json.dumps(dict(error='UsageError')))",
}

CHILD_SHIM = """
import json, os, runpy, signal, sys, time
import numpy as np

OUT = os.dup(1)
DONE = json.dumps(dict(result=dict(seconds=0, timing=None, samples=[])))

def answer(text):
    os.write(OUT, text.encode() + b"\\n")

def first():
    mark = os.environ["FAULT_MARK"]
    if not mark:
        return True
    try:
        os.mkdir(mark)
    except FileExistsError:
        return False
    return True

def do(job):
    {fault}
    time.sleep(0.2)

class Jobs:
    def __init__(self, lines):
        self.lines = lines

    def __iter__(self):
        for line in self.lines:
            job = json.loads(line)
            if job.get("job") == {job!r} and first():
                do(job)
            else:
                yield line

module, sys.argv = sys.argv[1], sys.argv[1:]
{start}
if {job!r} == "start" and first():
    do({{}})
    os._exit(0)
sys.stdin = Jobs(sys.stdin)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Kind:
    """A kind of child: its module, the job at which it fails, and what it may do there."""

    module: str
    job: str | None
    faults: Mapping[str, str]


CHILDREN = {
    "evaluator": Kind("quantune.runtime.worker", "evaluate", EVALUATOR),
    "timer": Kind("quantune.runtime.worker", "time", TIMER),
    "checker": Kind("quantune.compiler.checker", None, CHILD),
    "reader": Kind("quantune.frontend.reader", "start", READER),
}


def compiler(search: Search, fault: str, *, always: bool) -> None:
    """Put a faulty compiler in the place of the real one."""
    program = search.folder / "compiler.sh"
    program.write_text(COMPILER_SHIM.format(fault=COMPILER[fault]), encoding="utf-8")
    program.chmod(0o755)
    search.environment = {
        "FAULT_COMPILER": str(program),
        "FAULT_MARK": _mark(search.folder, always),
        **(PATIENCE if fault == "hang" else {}),
    }


def child(search: Search, kind: str, fault: str, *, always: bool, start: str = "pass") -> None:
    """Put faulty children in the place of those of a kind; start: what each does at its start."""
    folder, what = search.folder / "shims", CHILDREN[kind]
    folder.mkdir()
    text = CHILD_SHIM.format(fault=what.faults[fault], job=what.job, start=start)
    (folder / "faulty_child.py").write_text(text, encoding="utf-8")
    search.environment = {
        "FAULT_MODULE": what.module, "FAULT_MARK": _mark(search.folder, always),
        "PYTHONPATH": f"{search.data}:{folder}", **(PATIENCE if fault == "hang" or "closing" in fault else {}),
    }  # fmt: skip


def struck(search: Search, *, always: bool) -> bool:
    """Whether the fault was met that comes once; one that always comes leaves no mark, but an exit code."""
    return always or (search.folder / "mark").is_dir()


def _mark(folder: Path, always: bool) -> str:
    return "" if always else str(folder / "mark")
