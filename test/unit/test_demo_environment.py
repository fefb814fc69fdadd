"""The locked requirements of the demo and its container file: in step with pyproject.toml and the Makefile."""

from __future__ import annotations

import importlib.metadata
import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
LINE = re.compile(r"([a-z0-9-]+)==([\w.+]+) --hash=sha256:[0-9a-f]{64}")
PLATFORM = {"python_version": "3.11", "sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"}
PLATFORM |= {"python_full_version": "3.11.0", "os_name": "posix", "platform_python_implementation": "CPython"}
PLATFORM |= {"implementation_name": "cpython", "extra": ""}


def locked() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements-demo.lock").read_text().splitlines() if not line.startswith("#")]
    matches = [LINE.fullmatch(line) for line in lines]
    assert None not in matches, f"expected name==version --hash=sha256:…: {lines[matches.index(None)]}"
    return {match[1]: match[2] for match in matches if match}


def unmet(requirements: list[str], versions: dict[str, str]) -> list[str]:
    """Those requirements that apply to the demo's platform and that the versions do not meet."""
    wanted = [Requirement(text) for text in requirements]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate(PLATFORM)]
    found = [(one, versions.get(canonicalize_name(one.name))) for one in wanted]
    return [str(one) for one, version in found if version is None or version not in one.specifier]


def test_the_lock_meets_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["compile"]
    versions = locked()
    assert unmet(declared, versions) == [], "run: make lock"
    assert unmet(declared, {**versions, "numpy": "1.26.0"}) == ["numpy<3,>=2"]


def test_the_lock_meets_what_its_packages_need() -> None:
    """As far as the same versions are installed here: only what is installed says what it needs."""
    versions = locked()
    installed = {canonicalize_name(each.name): each for each in importlib.metadata.distributions()}
    for name, version in versions.items():
        if name in installed and installed[name].version == version:
            assert unmet(installed[name].requires or [], versions) == [], f"of {name}; run: make lock"


def test_a_lock_is_made_of_names_versions_and_hashes_alone() -> None:
    make = runpy.run_path(str(ROOT / "third_party" / "lock.py"))["lock"]
    file = {"url": "https://example.invalid/b.whl", "archive_info": {"hashes": {"sha256": "ab" * 32}}}
    own = {"download_info": {"url": "file:///src", "dir_info": {}}, "requested": True, "metadata": {"name": "quantune"}}
    report = {
        "environment": {"python_version": "3.11", "platform_system": "Linux", "platform_machine": "x86_64"},
        "install": [own, {"download_info": file, "metadata": {"name": "B_x", "version": "2.0+cpu"}}],
    }
    made = make(report)
    body = [line for line in made.splitlines() if not line.startswith("#")]
    assert body == [f"b-x==2.0+cpu --hash=sha256:{'ab' * 32}"]
    assert "example" not in made
    assert "//" not in (ROOT / "requirements-demo.lock").read_text()
    file["archive_info"] = {"hashes": {"md5": "00"}}
    with pytest.raises(ValueError, match=r"B_x 2\.0\+cpu: pip's report has no sha256"):
        make(report)


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line.partition(" ") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in lines]


def test_the_container_copies_what_there_is_and_installs_what_is_locked() -> None:
    found = instructions()
    assert [rest.split(" AS ")[0] for name, rest in found if name == "FROM"] == ["python:3.11-slim"] * 2
    copied = [rest.split()[:-1] for name, rest in found if name == "COPY" and not rest.startswith("--from=build")]
    assert all((ROOT / source).exists() for sources in copied for source in sources)
    installs = [rest for name, rest in found if name == "RUN" and " install " in rest]
    assert len(installs) == 2
    assert "--require-hashes -r /src/requirements-demo.lock" in installs[0]
    assert "--no-index --no-deps --no-build-isolation" in installs[1]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {f"{name.rstrip('*')}" for name in packages} <= {source for sources in copied for source in sources}


def test_nothing_is_fetched_after_the_build() -> None:
    found = instructions()
    last = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    assert [rest for name, rest in found[last:] if name in ("RUN", "ADD")] == ["mkdir -m 1777 /out"]
    assert [rest for name, rest in found[last:] if name == "COPY"] == ["--from=build /opt/quantune /opt/quantune"]


def test_the_container_runs_the_demo() -> None:
    found = dict(instructions())
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    demo = re.search(r"^demo:.*\n\t(.*)", makefile, re.MULTILINE)
    assert demo
    expected = shlex.split(demo[1].replace("$(BIN)/", "").replace("$(DEMO_OUT)", "/out"))
    assert [*json.loads(found["ENTRYPOINT"]), *json.loads(found["CMD"])] == expected
    assert found["WORKDIR"] == "/out"
    assert found["USER"] == "nobody"
