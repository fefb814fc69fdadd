"""How often the tests of this folder try: few times by default; with QUANTUNE_FAULTS=full for hours."""

from __future__ import annotations

import os

FULL = os.environ.get("QUANTUNE_FAULTS", "") == "full"

KILLS = int(os.environ.get("QUANTUNE_KILLS") or (200 if FULL else 24))
"""Moments of a search at which something is killed."""

CHEAP = 3000 if FULL else 1000
"""Inputs for a reader that works in this process."""

EXPENSIVE = 500 if FULL else 60
"""Inputs for a reader that starts a process for each, or loads torch's."""

RUNS = 20 if FULL else 5
"""Searches of four workers on a database, three of which are killed."""

LINES = 1000 if FULL else 200
"""Command lines drawn for each tool."""

DISKS = (16, 64, 100, 128, 140, 160, 180, 200, 240, 300) if FULL else (16, 100, 140, 200)
"""Sizes of disks in kB on which a search ends; there is room for all it writes on a larger one."""
