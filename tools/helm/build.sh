#!/usr/bin/env bash
# Builds helm and kubeconform from their Go modules, once, into a cache folder outside the repository, puts the definitions of custom
# resources that definitions.txt names beside them, and prints that folder. A second run waits for the first. Progress goes to stderr.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

digest=$(cat go.mod go.sum definitions.txt build.sh | sha256sum | cut -c1-16)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/typha-helm/$digest"

mkdir -p "$folder"
exec 8>"$folder/.lock"
flock 8
if [[ ! -e "$folder/bin" ]]; then
    go=$(../go.sh)
    built="$folder/bin.$$"
    echo "helm: building (once; about 2 minutes of one CPU)" >&2
    # Without these, helm believes that it is for Kubernetes 1.20, and refuses the chart.
    package=helm.sh/helm/v3/pkg
    known=$(sed -n 's/^\tk8s.io\/client-go v0\.\([0-9]*\)\..*/\1/p' go.mod)
    flags="-s -w"
    for part in chartutil lint/rules; do
        flags+=" -X $package/$part.k8sVersionMajor=1 -X $package/$part.k8sVersionMinor=$known"
    done
    CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -mod=readonly -trimpath -buildvcs=false" \
        nice -n 10 "$go" build -ldflags "$flags" -o "$built/" tool >&2 8>&-
    mkdir "$built/definitions"
    while read -r module hash path; do
        [[ "$module" == "#" ]] && continue
        found=$("$go" mod download -json "$module" 8>&-)
        if [[ "$found" != *"\"Sum\": \"$hash\""* ]]; then
            echo "helm: $module does not have the hash $hash" >&2
            exit 1
        fi
        sources=$(sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p' <<<"$found")
        cp "$sources/$path"/*.yaml "$built/definitions/"
    done <definitions.txt
    chmod -R u+w "$built"
    mv "$built" "$folder/bin" # whole or not at all: an interrupted build leaves nothing half done
fi
echo "$folder/bin"
