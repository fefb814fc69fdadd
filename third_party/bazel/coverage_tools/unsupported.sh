#!/bin/sh
echo "bazel coverage is not supported" >&2
exit 1
