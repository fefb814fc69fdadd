from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quantune.cache import ArtifactCache
from quantune.compiler import iree
from quantune.compiler.targets import Target
from quantune.errors import CompileFailed, EnvironmentFailure, UsageError
from quantune.process import job, scratch

CPU = Target("cpu")
MODULE = b"""
func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = arith.addf %a, %a : tensor<4xf32>
  return %0 : tensor<4xf32>
}
"""
OUTPUT = "import shutil, sys; out = sys.argv[sys.argv.index('-o') + 1]\n"
WRITE = "shutil.copyfile(real, out)\n"


@pytest.fixture(name="real", scope="module")
def _real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that the real compiler made."""
    return iree.compile_module(MODULE, CPU, output_dir=tmp_path_factory.mktemp("real"), explain=False).path


@pytest.fixture(name="shim")
def _shim(tmp_path: Path, real: Path):
    """Return a maker of stand-ins for iree-compile; each writes its process id first and has a ``real`` program."""

    def make(body: str) -> Path:
        path = tmp_path / "iree-compile"
        header = f"#!{sys.executable} -S\nimport os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        path.write_text(f"{header}{OUTPUT}real = {str(real)!r}\n{body}")
        path.chmod(0o755)
        return path

    return make


def _compile(tmp_path: Path, compiler: Path | None = None, module: bytes = MODULE, **options) -> iree.CompiledModule:
    folders = {"output_dir": tmp_path / "out", "failure_dir": tmp_path / "failures"}
    return iree.compile_module(module, CPU, compiler=compiler, **{**folders, **options})


def test_real_compilation_and_cache(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "cache")
    first = _compile(tmp_path, cache=cache)
    again = _compile(tmp_path, cache=cache, compiler=Path("/nonexistent"))
    assert (first.cached, again.cached) == (False, True)
    assert (first.path, first.sha256, first.seconds, first.log) == (again.path, again.sha256, again.seconds, again.log)
    assert first.dispatches == again.dispatches
    assert "flow.executable" in first.dispatches
    plain = _compile(tmp_path)
    assert plain.sha256 == first.sha256
    assert plain.path.parent == tmp_path / "out"


def test_dispatches_are_told_only_when_asked_for(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "cache")
    first = _compile(tmp_path, cache=cache, explain=False)
    assert first.dispatches == ""
    assert _compile(tmp_path, cache=cache, explain=False).cached
    asked = _compile(tmp_path, cache=cache)
    assert not asked.cached
    assert asked.sha256 == first.sha256
    assert "flow.executable" in asked.dispatches
    assert _compile(tmp_path, cache=cache).cached


def test_dispatches_are_those_of_the_artifact(tmp_path: Path) -> None:
    told = _compile(tmp_path)
    again = _compile(tmp_path, module=told.dispatches.encode(), flags=["--compile-from=flow"], explain=False)
    assert again.sha256 == told.sha256


def test_a_failure_is_tried_again_with_all_checks(tmp_path: Path, shim) -> None:
    body = "unchecked = '--verify=false' in sys.argv\n"
    body += "if unchecked: print('error: vague'); sys.exit(1)\n"
    assert _compile(tmp_path, shim(body + WRITE), explain=False).sha256
    with pytest.raises(CompileFailed, match="error: clear; reproduce") as caught:
        _compile(tmp_path, shim(body + "print('error: clear'); sys.exit(1)"), explain=False)
    script = Path(str(caught.value).rpartition("sh ")[2])
    assert "--verify" not in script.read_text()


def test_damaged_cache_entry_is_compiled_again(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "cache")
    first = _compile(tmp_path, cache=cache)
    data = bytearray(first.path.read_bytes())
    data[len(data) // 2] ^= 1
    first.path.write_bytes(data)
    again = _compile(tmp_path, cache=cache)
    assert not again.cached
    assert again.sha256 == first.sha256


def test_crash_names_the_signal_and_keeps_a_reproducer(tmp_path: Path, shim) -> None:
    crash = shim("print('LLVM ERROR: Cannot select: x', flush=True); os.kill(os.getpid(), 11)")
    with pytest.raises(
        CompileFailed, match=r"crashed with SIGSEGV: LLVM ERROR: Cannot select: x; reproduce with: sh "
    ) as caught:
        _compile(tmp_path, crash)
    script = Path(str(caught.value).rpartition("sh ")[2])
    assert "\n" not in str(caught.value)
    assert script.parent.parent == tmp_path / "failures"
    assert (script.parent / "module.mlir").read_bytes() == MODULE
    assert "LLVM ERROR" in (script.parent / "log").read_text()
    assert os.waitstatus_to_exitcode(os.system(f"sh {script} > {tmp_path}/again 2>&1")) == 128 + 11
    assert not list((tmp_path / "out").glob("*"))


def test_hang_is_stopped(tmp_path: Path, shim) -> None:
    started = time.monotonic()
    with pytest.raises(CompileFailed, match="took longer than 2 s"):
        _compile(tmp_path, shim("import time; time.sleep(600)"), timeout_s=2)
    assert time.monotonic() - started < 300
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_children_of_a_hanging_compiler_are_stopped_too(tmp_path: Path, shim) -> None:
    body = (
        f"pid = os.fork()\nif pid: open({str(tmp_path / 'child')!r}, 'w').write(str(pid))\nimport time; time.sleep(60)"
    )
    with pytest.raises(CompileFailed, match="took longer"):
        _compile(tmp_path, shim(body), timeout_s=3, explain=False)
    state = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    for _ in range(100):  # a killed process ends when it is next scheduled
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


READ = "data = bytearray(open(real, 'rb').read())\n"
FLIP = "import zipfile\nwith zipfile.ZipFile(real) as z: parts = z.infolist()\n" + READ
LIES = [
    ("open(out, 'wb').write(b'garbage')", r"wrote something that is not a whole \.vmfb"),
    ("import os; open(out, 'wb').write(b'PK\\x03\\x04' + os.urandom(5000))", r"that is not a whole"),
    (READ + "open(out, 'wb').write(data[:len(data) // 2])", r"something that is not a whole \.vmfb \("),
    (
        FLIP + "data[parts[0].header_offset + 300] ^= 1; open(out, 'wb').write(data)",
        "a .vmfb of which module.fb is dam",
    ),
    (FLIP + "data[parts[1].header_offset + 900] ^= 1; open(out, 'wb').write(data)", r"of which .*\.so is damaged"),
    ("import zipfile\nwith zipfile.ZipFile(out, 'w') as z: z.writestr('x', 'y')", "something that is not a .vmfb;"),
    ("import zipfile\nwith zipfile.ZipFile(out, 'w') as z: z.writestr('module.fb', bytes(600))", "cannot be loaded: "),
]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            WRITE + "print('ERROR: mismatched parenthesis')",
            "printed an error and went on: ERROR",
        ),
        (WRITE + "print('x.mlir:1:2: error: no pass')", "printed an error and went on"),
        ("sys.exit(3)", "failed with exit status 3; reproduce"),
        (
            "print('a remark: b'); print('m.mlir:3:1: error: bad op'); sys.exit(1)",
            "exit status 1: m.mlir:3:1: error: bad op",
        ),
        ("sys.stdout.buffer.write(bytes(range(256)) * 9000); sys.exit(1)", "failed with exit status 1"),
        ("", "wrote no artifact"),
        ("open(out, 'wb')", "wrote no artifact"),
        *LIES,
    ],
    ids=["ERROR", "error", "silent", "diagnostic", "noise", "nothing", "empty", *(message for _, message in LIES)],
)
def test_bad_ends(tmp_path: Path, shim, body: str, message: str) -> None:
    with pytest.raises(CompileFailed, match=message):
        _compile(tmp_path, shim(body), cache=ArtifactCache(tmp_path / "cache"))
    assert not list((tmp_path / "cache/objects").rglob("*.vmfb"))


@pytest.mark.parametrize(("lie", "message"), LIES)
def test_a_compiler_that_lies_once_does_not_poison_the_cache(
    tmp_path: Path, shim, real: Path, caplog: pytest.LogCaptureFixture, lie: str, message: str
) -> None:
    cache = ArtifactCache(tmp_path / "cache")
    once = f"import os\nif not os.path.exists('../lied'):\n  open('../lied', 'w')\n  exec({lie!r})\nelse: {WRITE}"
    made = _compile(tmp_path, shim(once.replace("../lied", str(tmp_path / "lied"))), cache=cache, explain=False)
    assert made.path.read_bytes() == real.read_bytes()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert re.search(message.rstrip(";"), told[0])
    assert re.search(r"set aside: .*failures.*; compiled once more, and that is whole", told[0])
    aside = list((tmp_path / "failures").glob("*/module.vmfb"))
    assert len(aside) == 1
    assert aside[0].read_bytes() != real.read_bytes()
    again = _compile(tmp_path, Path("/nonexistent"), cache=cache, explain=False)
    assert (again.cached, again.sha256) == (True, made.sha256)


def test_half_a_text_of_dispatches_is_not_believed(tmp_path: Path, shim) -> None:
    told = _compile(tmp_path).dispatches
    assert job._WHOLE_TEXT.search(told)
    (tmp_path / "half").write_text(told[: told.index("\n", len(told) // 2)])
    body = f"shutil.copyfile({str(tmp_path / 'half')!r} if '--compile-to=flow' in sys.argv else real, out)"
    with pytest.raises(CompileFailed, match="formed no dispatches"):
        _compile(tmp_path, shim(body), cache=ArtifactCache(tmp_path / "cache"))
    assert not list((tmp_path / "cache/objects").rglob("*.gz"))


def test_memory_limit(tmp_path: Path, shim) -> None:
    # The limit is set from outside, a moment after the start.
    eat = shim("import time\nfor _ in range(600): x = bytearray(2 << 30); time.sleep(0.1)")
    with pytest.raises(CompileFailed, match=r"needs more than the memory limit of 1\.1 GB \(--memory-limit"):
        _compile(tmp_path, eat, memory_limit=1 << 30, explain=False)


def test_a_compiler_that_the_system_kills(tmp_path: Path, shim) -> None:
    with pytest.raises(CompileFailed, match="was killed, most likely by the system for want of memory"):
        _compile(tmp_path, shim("os.kill(os.getpid(), 9)"), explain=False)


def test_real_errors(tmp_path: Path) -> None:
    with pytest.raises(CompileFailed, match="custom op 'bad' is unknown"):
        _compile(tmp_path, module=b"func.func @main() { bad }")
    with pytest.raises(CompileFailed, match="'nosuch' does not refer to a registered pass"):
        _compile(tmp_path, flags=["--iree-preprocessing-pass-pipeline=builtin.module(nosuch)"])
    with pytest.raises(UsageError, match="target cpu:nonsense: IREE knows no such processor"):
        iree.compile_module(MODULE, Target("cpu", cpu="nonsense"), failure_dir=tmp_path)
    with pytest.raises(UsageError, match="target vulkan:foo: IREE knows no such GPU"):
        iree.compile_module(MODULE, Target("vulkan", vulkan_target="foo"), failure_dir=tmp_path)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFailure, match=r"no space left in .*/out \(.* MB are free\): free some; the same"):
        _compile(tmp_path)
    # What the cache has no room for goes to the temporary files, which have none here either.
    with pytest.raises(EnvironmentFailure, match=r"no space left in .*/cache.* \(.* MB are free\): free some"):
        _compile(tmp_path, cache=ArtifactCache(tmp_path / "cache"))


def test_a_compiler_keeps_its_temporary_files_where_they_are_swept(tmp_path: Path, shim) -> None:
    """Its linker leaves some when it is killed."""
    body = f"{READ}import os\nopen({str(tmp_path / 'told')!r}, 'w').write(os.path.abspath(os.environ['TMPDIR']))\n"
    _compile(tmp_path, shim(body + "open(out, 'wb').write(data)"), explain=False)
    told = Path((tmp_path / "told").read_text())
    assert told.is_relative_to(scratch.root())
    assert not told.exists()


@pytest.mark.parametrize("status", [0, 1])
def test_no_space_for_the_compiler(tmp_path: Path, shim, status: int) -> None:
    """iree-compile tells so, with half a file and either status."""
    body = READ + "open(out, 'wb').write(data[:900]); print('m: error: out: No space left on device')\n"
    with pytest.raises(EnvironmentFailure, match=r"no space left in .*set TMPDIR to a folder with more; the same"):
        _compile(tmp_path, shim(body + f"sys.exit({status})"), explain=False)
    assert not (tmp_path / "failures").exists()


def test_no_space_left_behind_is_noticed(tmp_path: Path, shim, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that says nothing of it."""
    monkeypatch.setattr(scratch, "free_bytes", lambda where: 4096)
    with pytest.raises(EnvironmentFailure, match=r"no space left in .* \(0\.0 MB are free\)"):
        _compile(tmp_path, shim(READ + "open(out, 'wb').write(data[:900])"), explain=False)


def test_only_the_newest_failures_are_kept(tmp_path: Path, shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iree, "_FAILURES_KEPT", 2)
    fail = shim("sys.exit(1)")
    for number in range(4):
        with pytest.raises(CompileFailed):
            _compile(tmp_path, fail, module=b"// %d" % number)
    sources = [(p / "module.mlir").read_bytes() for p in (tmp_path / "failures").iterdir()]
    assert sorted(sources) == [b"// 2", b"// 3"]


def test_key_depends_on_everything() -> None:
    keys = {
        iree.program_key(MODULE, CPU),
        iree.program_key(MODULE + b" ", CPU),
        iree.program_key(MODULE, Target("cpu", cpu="generic")),
        iree.program_key(MODULE, CPU, ["--x"]),
    }
    assert len(keys) == 4


def test_bad_timeout(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="compile timeout 0"):
        _compile(tmp_path, timeout_s=0)


def test_compilations_are_held_while_time_is_measured(tmp_path: Path, shim) -> None:
    log = tmp_path / "ticks"
    ticking = shim(f"import time\nfor _ in range(200): open({str(log)!r}, 'a').write('.'); time.sleep(0.02)\n" + WRITE)
    with ThreadPoolExecutor(1) as pool:
        compiled = pool.submit(_compile, tmp_path, ticking, explain=False)
        while not log.exists() or not log.stat().st_size:
            time.sleep(0.01)
        with job.paused():
            time.sleep(0.1)  # a stop takes effect at the next scheduling
            before = log.stat().st_size
            time.sleep(0.4)
            assert log.stat().st_size == before
        assert compiled.result().sha256
    assert log.stat().st_size == 200
    assert not job._running


def test_a_held_compiler_ends_with_a_killed_owner(tmp_path: Path, shim) -> None:
    compiler = shim("import time; time.sleep(600)")
    pid, owner = tmp_path / "pid", tmp_path / "owner.py"
    owner.write_text(f"""
import os, signal, threading, time
from pathlib import Path
from quantune.compiler import iree
from quantune.process import job
from quantune.compiler.targets import Target
given = dict(compiler=Path({str(compiler)!r}), explain=False, failure_dir=Path({str(tmp_path)!r}))
threading.Thread(target=iree.compile_module, args=(b"", Target("cpu")), kwargs=given, daemon=True).start()
while not (os.path.exists({str(pid)!r}) and open({str(pid)!r}).read()): time.sleep(0.01)
with job.paused():
    while Path("/proc", open({str(pid)!r}).read(), "stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
""")
    assert subprocess.run([sys.executable, owner], check=False, timeout=60).returncode == -signal.SIGKILL
    state = Path(f"/proc/{pid.read_text()}/stat")
    for _ in range(600):
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the stopped compiler is still there")
