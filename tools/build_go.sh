#!/usr/bin/env bash
# Builds the Go program of the folder that a link to this file stands in, once, into a cache folder outside the repository, and
# prints the program's path. A folder without sources has the program as a tool in its go.mod. A second run waits for the first. Progress goes to stderr.
set -euo pipefail
tools=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
cd "$(dirname "${BASH_SOURCE[0]}")"

name=$(basename "$PWD")
module=$PWD
until [[ -e "$module/go.mod" ]]; do module=$(dirname "$module"); done
digest=$(cd "$module" && find . -type f \( -name 'go.*' -o -name '*.go' \) -print0 | sort -z | xargs -0 cat | sha256sum | cut -c1-16)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/typha-$name/$digest"

mkdir -p "$folder"
exec 8>"$folder/.lock"
flock 8
if [[ ! -x "$folder/$name" ]]; then
    go=$("$tools/go.sh")
    echo "$name: building" >&2
    package=.
    if [[ "$PWD" == "$module" ]] && grep -q '^tool ' go.mod; then package=tool; fi
    CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -mod=readonly -trimpath -buildvcs=false" "$go" build -o "$folder/$name.$$" "$package" >&2 8>&-
    mv "$folder/$name.$$" "$folder/$name" # whole or not at all: an interrupted build leaves nothing half done
fi
echo "$folder/$name"
