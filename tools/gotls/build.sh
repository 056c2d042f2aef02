#!/usr/bin/env bash
# Builds gotls, once, into a cache folder outside the repository, and prints the program's path. A second run waits for the
# first. Progress goes to stderr.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

digest=$(cat go.mod main.go | sha256sum | cut -c1-16)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/typha-gotls/$digest"

mkdir -p "$folder"
exec 8>"$folder/.lock"
flock 8
if [[ ! -x "$folder/gotls" ]]; then
    go=$(../go.sh)
    echo "gotls: building" >&2
    CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -mod=readonly -trimpath -buildvcs=false" "$go" build -o "$folder/gotls.$$" . >&2 8>&-
    mv "$folder/gotls.$$" "$folder/gotls" # whole or not at all: an interrupted build leaves nothing half done
fi
echo "$folder/gotls"
