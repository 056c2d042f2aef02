#!/usr/bin/env bash
# Fetches axe-core, the rules of accessibility that the tests of the status page run in a browser, by npm and its lock file, once,
# into a cache folder outside the repository, and prints the script's path. Nothing of it is shipped. Progress goes to stderr.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

digest=$(cat package.json package-lock.json | sha256sum | cut -c1-16)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/typha-axe/$digest"

mkdir -p "$folder"
exec 8>"$folder/.lock"
flock 8
if [[ ! -f "$folder/axe.min.js" ]]; then
    cp package.json package-lock.json "$folder"
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund >&2 8>&-)
    mv "$folder/node_modules/axe-core/axe.min.js" "$folder/axe.min.js.$$"
    mv "$folder/axe.min.js.$$" "$folder/axe.min.js" # whole or not at all
    rm -rf "$folder/node_modules"
fi
echo "$folder/axe.min.js"
