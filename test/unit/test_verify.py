"""quantune-verify: each check holds for a good artifact, and fails alone for what it is there to find."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from device_server import TOKEN, in_thread

from quantune import verification
from quantune.artifact.provenance import Measured, Provenance, attach
from quantune.artifact.records import LayerExecution
from quantune.cache import ArtifactCache
from quantune.cli import verify
from quantune.compiler.inspect import required_processor
from quantune.compiler.iree import compile_module
from quantune.compiler.targets import Target
from quantune.data.sources import open_source
from quantune.data.splits import Split
from quantune.device.address import Address
from quantune.device.server import Server
from quantune.runtime import devices

ACTION = Path(__file__).resolve().parent.parent.parent / ".github" / "actions" / "verify" / "action.yml"
# Answers with the two channels of its image: the label is the larger one.
NETWORK = b"""func.func @main(%x: tensor<1x2x1x1xf32>) -> tensor<1x2xf32> {
  %0 = tensor.collapse_shape %x [[0], [1, 2, 3]] : tensor<1x2x1x1xf32> into tensor<1x2xf32>
  %1 = arith.addf %0, %0 : tensor<1x2xf32>
  return %1 : tensor<1x2xf32>
}"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, of which the network answers six right."""
    path = tmp_path_factory.mktemp("images") / "eval.npz"
    pixels = np.random.default_rng(0).normal(size=(8, 2, 1, 1)).astype(np.float32)
    labels = pixels[:, :, 0, 0].argmax(axis=1)
    labels[:2] = 1 - labels[:2]
    np.savez(path, images=pixels, labels=labels)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, images: Path) -> tuple[bytes, Provenance]:
    """A program, and a record that is true of it."""
    folder = tmp_path_factory.mktemp("made")
    done = compile_module(NETWORK, Target("cpu"), cache=ArtifactCache(folder), output_dir=folder, explain=True)
    source = open_source(f"npz:{images}", "evaluation")
    fingerprint = Split(source, tuple(range(8))).fingerprint
    record = Provenance(
        "cpu:host", "precision=int8", "net", versions={"quantune": "0.1.0"},
        layers=(LayerExecution("a", "conv", 30, "i8", "main"), LayerExecution("b", "conv", 10, "f32", "main")),
        processor=required_processor(done.dispatches), measured=Measured(0.75, 8, fingerprint, 1.0, 1),
    )  # fmt: skip
    return done.path.read_bytes(), record


@pytest.fixture
def artifact(made: tuple[bytes, Provenance], tmp_path: Path) -> Path:
    path = tmp_path / "best.vmfb"
    path.write_bytes(attach(*made))
    return path


def _verify(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code, and what is said of each check: outcome and text."""
    code = verify.main([str(each) for each in arguments])
    lines = [re.fullmatch(r"(\w+) +(\w+) +(.*)", line) for line in capsys.readouterr().out.splitlines()]
    return code, {line[2]: (line[1], line[3]) for line in lines if line}


def _rewritten(path: Path, made: tuple[bytes, Provenance], **changes: object) -> Path:
    path.write_bytes(attach(made[0], replace(made[1], **changes)))  # type: ignore[arg-type]
    return path


def test_a_good_artifact_holds(artifact: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    (artifact.parent / "best.json").write_text(json.dumps({"file_sha256": digest}))
    options = [f"--eval=npz:{images}", f"--sha256={digest}", "--max-latency=60s", "--min-integers=0.75"]
    code, checks = _verify(capsys, artifact, *options)
    assert code == 0
    assert list(checks) == ["file", "record", "processor", "program", "integers", "accuracy", "latency"]
    assert {outcome for outcome, _ in checks.values()} == {"ok"}
    assert checks["file"][1].endswith(f"sha256 {digest}, the given and best.json's")
    assert checks["program"][1] == "loads on local-sync and takes 1x2x1x1xf32"
    assert checks["integers"][1] == "75.0% of 40 multiply-accumulates, in 2 functions that the program has"
    assert checks["accuracy"][1] == "75.00% of 8 images, recorded 75.00%"


def test_without_images_the_accuracy_is_skipped(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = _verify(capsys, artifact)
    assert (code, checks["accuracy"][0], "latency" in checks) == (0, "skipped", False)


@pytest.mark.parametrize(
    ("change", "options", "failed", "text"),
    [
        ({}, [f"--sha256={'0' * 64}"], "file", "the given 000000"),
        ({}, ["--min-integers=0.9"], "integers", "2 functions that the program has; 90.0% are asked for"),
        ({"layers": (LayerExecution("a", "conv", 3, "i8", "main_dispatch_77"),)}, [], "integers",
         "the record names 'main_dispatch_77', which the program has not"),
        ({"layers": (LayerExecution("a", "conv", 3, "f32", "main"),)}, [], "integers", "though its configuration is"),
        ({}, ["--eval", "--min-accuracy=0.8"], "accuracy", "75.00% of 8 images, recorded 75.00%; 80.00% are asked for"),
        ({"measured": None}, ["--eval"], "accuracy", "the record has none (made without a search)"),
        ({"measured": Measured(1.0, 8, "", None, 1)}, ["--eval"], "accuracy", "the record's 100.00% are of 8 others"),
        ({}, ["--max-latency=0.000001ms"], "latency", "ms on 1 thread, recorded 1.000 ms on 1; 1e-06 ms are allowed"),
    ],
)  # fmt: skip
def test_a_check_fails_alone(
    change: dict[str, object], options: Sequence[str], failed: str, text: str, artifact: Path, images: Path,
    made: tuple[bytes, Provenance], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    _rewritten(artifact, made, **change)
    given = [f"--eval=npz:{images}" if option == "--eval" else option for option in options]
    code, checks = _verify(capsys, artifact, *given)
    assert code == 1
    assert [name for name, (outcome, _) in checks.items() if outcome == "FAILED"] == [failed]
    assert text in checks[failed][1]


@pytest.mark.parametrize(
    ("recorded", "options", "code"),
    [(0.75, [], 0), (0.875, [], 0), (0.9, [], 1), (0.9, ["--max-drop=0.2"], 0), (0.875, ["--max-drop=0"], 1)],
)
def test_the_accuracy_may_fall_by_an_image_or_by_what_is_allowed(
    recorded: float, options: list[str], code: int, artifact: Path, images: Path, made: tuple[bytes, Provenance],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert made[1].measured is not None
    _rewritten(artifact, made, measured=replace(made[1].measured, accuracy=recorded))
    assert _verify(capsys, artifact, f"--eval=npz:{images}", *options)[0] == code


def test_damage_ends_the_checks(
    artifact: Path, made: tuple[bytes, Provenance], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = artifact.read_bytes()
    artifact.write_bytes(whole[:-1])
    code, checks = _verify(capsys, artifact)
    assert (code, list(checks), checks["file"][0]) == (1, ["file"], "FAILED")
    artifact.write_bytes(made[0])
    code, checks = _verify(capsys, artifact)
    assert (code, checks["record"]) == (
        1,
        ("FAILED", "there is none: a .vmfb of another origin, which nothing vouches for"),
    )
    artifact.write_bytes(whole)
    (artifact.parent / "best.json").write_text("{")
    code, checks = _verify(capsys, artifact)
    assert (code, checks["file"][0]) == (1, "FAILED")


def test_a_machine_that_lacks_something_is_no_failure(
    artifact: Path, made: tuple[bytes, Provenance], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = made[1].processor
    assert needed is not None
    _rewritten(artifact, made, processor=replace(needed, features=("avx9",)))
    monkeypatch.setattr(devices, "host_features", lambda: {"avx9": False})
    code, checks = _verify(capsys, artifact)
    assert (code, checks["processor"][0], "program" in checks) == (4, "LACKING", False)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Address]]:
    with in_thread(tmp_path_factory.mktemp("device") / "store") as server:
        yield server


@pytest.fixture
def device(served: tuple[Server, Address], tmp_path: Path) -> str:
    """A device's address, as --device takes it, with a file of its token."""
    (tmp_path / "token").write_text(TOKEN)
    return f"{served[1]}?token-file={tmp_path / 'token'}&wait=60"


def test_a_device_answers_and_is_timed(
    artifact: Path, images: Path, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("Worker", "LocalRunner", "benchmark", "check_processor"):
        monkeypatch.setattr(verification, name, None)  # nothing of it runs here
    where = device.partition("?")[0]
    code, checks = _verify(capsys, artifact, "--device", device, f"--eval=npz:{images}", "--max-latency=60s")
    assert (code, {outcome for outcome, _ in checks.values()}) == (0, {"ok"})
    assert list(checks) == ["file", "record", "processor", "program", "integers", "accuracy", "latency"]
    assert re.search(r": device .* processors, .* IREE [\d.]+, has all its features$", checks["processor"][1])
    assert checks["program"][1] == f"loads on {where} and takes 1x2x1x1xf32"
    assert checks["accuracy"][1] == "75.00% of 8 images, recorded 75.00%"
    code, checks = _verify(capsys, artifact, "--device", device, f"--eval=npz:{images}", "--min-accuracy=0.8")
    assert (code, checks["accuracy"][0]) == (1, "FAILED")
    code, checks = _verify(capsys, artifact, "--device", device, "--max-latency=0.000001ms")
    assert (code, checks["latency"][0]) == (1, "FAILED")


def test_damage_is_found_before_a_device_is_asked(
    artifact: Path, made: tuple[bytes, Provenance], capsys: pytest.CaptureFixture[str]
) -> None:
    artifact.write_bytes(artifact.read_bytes()[:-1])
    code, checks = _verify(capsys, artifact, "--device=tcp://127.0.0.1:1")
    assert (code, list(checks), checks["file"][0]) == (1, ["file"], "FAILED")


def test_a_device_that_lacks_something_or_is_not_there(
    artifact: Path, made: tuple[bytes, Provenance], served: tuple[Server, Address], device: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    needed = made[1].processor
    assert needed is not None
    code, checks = _verify(capsys, artifact, "--device=tcp://127.0.0.1:1")
    assert (code, list(checks)[-1], checks["processor"][0]) == (4, "processor", "LACKING")
    assert "cannot be reached: Connection refused" in checks["processor"][1]
    _rewritten(artifact, made, processor=replace(needed, features=("avx9",)))
    monkeypatch.setitem(served[0].description, "features", {"avx9": False})
    code, checks = _verify(capsys, artifact, "--device", device)
    assert (code, checks["processor"][0], "program" in checks) == (4, "LACKING", False)
    assert re.search(r"with avx9, which device tcp://\S+ lacks; compile for", checks["processor"][1])
    _rewritten(artifact, made, target="vulkan", processor=None)
    code, checks = _verify(capsys, artifact, "--device", device)
    assert (code, checks["processor"][0]) == (4, "LACKING")
    assert "runs programs on local" in checks["processor"][1]


def test_a_wrong_token_is_a_wrong_request(
    artifact: Path, device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("a token of some other device")
    assert verify.main([str(artifact), "--device", device]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("the token is wrong")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["none.vmfb"], "none.vmfb: cannot be read"),
        (["x", "--device=tcp://board:x"], "device 'tcp://board:x': Port could not be cast"),
        (["x", "--device=tcp://board", "--timeout=5"], "timeout: device tcp://board has a limit of its own"),
        (["x", "--sha256=12"], "sha256 '12': expected 64 hexadecimal digits"),
        (["x", "--max-drop=0.1"], "max-drop and min-accuracy need images"),
        (["x", "--eval=npz:a", "--max-drop=2"], "max-drop 2.0: expected a fraction from 0 to 1"),
        (["x", "--max-latency=3"], "'3': expected a time such as 5ms or 0.2s"),
        (["x", "--threads=0"], "threads 0: expected 1 or more"),
        (["x", "--eval=nonsense"], "data 'nonsense': expected"),
    ],
)
def test_wrong_requests(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = verify.main(options)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert text in capsys.readouterr().err


def test_the_checks_as_json(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(artifact), "--json", str(tmp_path / "checks.json")]) == 0
    report = json.loads((tmp_path / "checks.json").read_text())
    assert (report["outcome"], [check["outcome"] for check in report["checks"]][:2]) == ("ok", ["ok", "ok"])
    capsys.readouterr()
    assert verify.main([str(artifact), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "ok"


def test_the_action_passes_every_input_on() -> None:
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    install, check = action["runs"]["steps"]
    used = {**install["env"], **check["env"]}
    assert {f"${{{{ inputs.{name} }}}}" for name in action["inputs"]} == set(used.values())
    options = {option for option in check["env"] if option not in ("ARTIFACT",)}
    known = {action.dest.upper() for action in verify._parser()._actions}
    assert options <= known
    assert "${{" not in check["run"]  # an input written into a script could be a command
    assert "${{" not in install["run"]


@pytest.mark.parametrize(("status", "outcome"), [(0, "ok"), (1, "FAILED"), (4, "LACKING"), (2, "error")])
def test_the_action_runs_the_command(status: int, outcome: str, tmp_path: Path) -> None:
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    step = action["runs"]["steps"][1]
    shim = tmp_path / "quantune-verify"
    shim.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/said\nexit {status}\n')
    shim.chmod(0o755)
    given = {name: entry.get("default", "") for name, entry in action["inputs"].items()}
    given |= {"artifact": "a b; touch c.vmfb", "eval": "imagefolder:my val?resize=256&crop=224", "max-drop": "0.01"}
    environment = {
        name: given[value.removeprefix("${{ inputs.").removesuffix(" }}")] for name, value in step["env"].items()
    }
    told = tmp_path / "output"
    ran = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(told),
            **environment,
        },
        check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == status
    assert told.read_text() == f"outcome={outcome}\n"
    assert (tmp_path / "said").read_text().splitlines() == [
        "--eval=imagefolder:my val?resize=256&crop=224", "--max-drop=0.01", "--threads=1",
        f"--json={tmp_path}/quantune-verify.json", "--", "a b; touch c.vmfb",
    ]  # fmt: skip
