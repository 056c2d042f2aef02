#!/usr/bin/env bash
# Builds kube-apiserver and etcd from their Go modules, once, into a cache folder outside the repository, and prints that folder.
# Nothing is built if it is there already, or if TEST_ASSET_KUBE_APISERVER and TEST_ASSET_ETCD (the variables of Kubernetes'
# envtest) name other binaries. A second run waits for the first. Progress goes to stderr.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [[ -n "${TEST_ASSET_KUBE_APISERVER:-}" && -n "${TEST_ASSET_ETCD:-}" ]]; then
    echo "control plane: using TEST_ASSET_KUBE_APISERVER and TEST_ASSET_ETCD, nothing to build" >&2
    exit 0
fi

# Must agree with loadtest/environment/control_plane.py: the first 16 hex digits of the SHA-256 of go.mod, go.sum and both main packages.
digest=$(cat go.mod go.sum etcd/main.go kube-apiserver/main.go | sha256sum | cut -c1-16)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/typha-control-plane/$digest/bin"

mkdir -p "$folder"
exec 8>"$folder/.lock"
flock 8
if [[ -x "$folder/kube-apiserver" && -x "$folder/etcd" ]]; then
    echo "$folder"
    exit 0
fi
go=$(../go.sh)

report_progress() { # every 30 s
    local next=30
    while sleep 1; do
        if ((SECONDS - started >= next)); then
            echo "control plane: building $program for $next s"
            next=$((next + 30))
        fi
    done
}

reporter=
trap 'kill $reporter 2>/dev/null || true' EXIT  # it may have ended already
export CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -mod=readonly -trimpath -buildvcs=false"
for program in etcd kube-apiserver; do
    echo "control plane: building $program (once; kube-apiserver takes about 5 minutes on 2 CPUs)" >&2
    started=$SECONDS
    report_progress >&2 8>&- &
    reporter=$!
    nice -n 10 "$go" build -ldflags "-s -w" -o "$folder/$program.$$" "./$program" >&2 8>&-
    kill "$reporter"
    mv "$folder/$program.$$" "$folder/$program" # whole or not at all: an interrupted build leaves nothing half done
    echo "control plane: built $program in $((SECONDS - started)) s" >&2
done
echo "$folder"
