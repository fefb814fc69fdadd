"""Writes requirements-demo.lock from what pip would install, which its report (`--dry-run --report -`) tells on stdin.

Names, versions and hashes alone: where the files come from is for pip's configuration to say, wherever it runs.
"""

from __future__ import annotations

import json
import sys
from typing import Any

HEADER = """\
# What the demo runs on, for CPython {python_version} on {platform_system} {platform_machine}: exact versions, and the hashes of their files.
# make lock renews it. To install it: pip install --require-hashes -r requirements-demo.lock
# torch's build for CPUs (+cpu) is on an index of its own: set PIP_EXTRA_INDEX_URL to one that has it.
"""  # noqa: E501


def lock(report: dict[str, Any]) -> str:
    """The lock file of a report of pip, without the project itself. Raises ValueError for a file without a hash."""
    lines = []
    for item in report["install"]:
        archive = item["download_info"].get("archive_info")
        if archive is None and item.get("requested"):
            continue  # the project's own folder
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        digest = (archive or {}).get("hashes", {}).get("sha256")
        if digest is None:
            raise ValueError(f"{name} {version}: pip's report has no sha256")
        lines.append(f"{name.lower().replace('_', '-')}=={version} --hash=sha256:{digest}\n")
    return HEADER.format(**report["environment"]) + "".join(sorted(lines))


if __name__ == "__main__":
    sys.stdout.write(lock(json.load(sys.stdin)))
