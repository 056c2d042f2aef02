#!/usr/bin/env bash
# Builds yamlref, once, into a cache folder outside the repository, and prints the program's path. A second run waits for the
# first. Progress goes to stderr.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

digest=$(cat go.mod go.sum main.go | sha256sum | cut -c1-16)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/typha-yamlref/$digest"

mkdir -p "$folder"
exec 8>"$folder/.lock"
flock 8
if [[ ! -x "$folder/yamlref" ]]; then
    go=$(../go.sh)
    echo "yamlref: building" >&2
    CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -mod=readonly -trimpath -buildvcs=false" "$go" build -o "$folder/yamlref.$$" . >&2 8>&-
    mv "$folder/yamlref.$$" "$folder/yamlref" # whole or not at all: an interrupted build leaves nothing half done
fi
echo "$folder/yamlref"
