#!/usr/bin/env bash
# Builds gobpeer once, into a cache folder outside the repository, and prints the program's path. Progress goes to stderr.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Must agree with tests/integration/test_gobpeer.py: the first 16 hex digits of the SHA-256 of go.mod, go.sum and the sources.
digest=$(cat go.mod go.sum client.go main.go messages.go server.go | sha256sum | cut -c1-16)
program="${XDG_CACHE_HOME:-$HOME/.cache}/typha-gobpeer/$digest/gobpeer"

if [[ ! -x "$program" ]]; then
    if ! command -v go >/dev/null; then
        echo "gobpeer: needs Go $(sed -n 's/^go //p' go.mod) or newer" >&2
        exit 1
    fi
    mkdir -p "$(dirname "$program")"
    echo "gobpeer: building" >&2
    CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -mod=readonly -trimpath -buildvcs=false" go build -o "$program.$$" . >&2
    mv "$program.$$" "$program" # whole or not at all: an interrupted build leaves nothing half done
fi
echo "$program"
