"""Runs pytest on the files and options of the command line: what a py_test of BUILD.bazel starts."""

from __future__ import annotations

import sys

import pytest

if __name__ == "__main__":
    # A sandbox is read-only, and a test file's folder must not be taken for the root of the tests.
    sys.exit(pytest.main(["-p", "no:cacheprovider", "-q", "-m", "not slow", *sys.argv[1:]]))
