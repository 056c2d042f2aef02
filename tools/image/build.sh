#!/usr/bin/env bash
# Builds the image of the repository's Dockerfile without a container engine, once for each state of what it is built from, and
# prints the folder that has it: `oci` (the image as an OCI layout) and `bundle` (unpacked). Needs root, buildah, umoci and
# mmdebstrap, and a network. Progress goes to stderr. A second run waits for the first.
#
# The base image is made here from Debian's packages, under the name of the one in the Dockerfile. The wheel of native/ is the
# one that `make native` makes, where Rust is new enough; elsewhere the Dockerfile's stage makes it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/typha-image"
base=docker.io/library/debian:trixie-slim
storage_megabytes_max=4000 # of layers that a later build may use again; each state of the sources adds some 200
inputs=(.dockerignore Dockerfile LICENSE README.md pyproject.toml cache clients native protocol requirements/{build,native,runtime}.txt tools/image typha)

digest=$(find "${inputs[@]}" -type f -not -name '*.pyc' -not -path native/target/\* -print0 | sort --zero-terminated |
    xargs --null sha256sum | sha256sum | cut -c1-16)
folder="$cache/$digest"
mkdir -p "$cache"
exec 8>"$cache/.lock"
flock 8
if [[ -d $folder/bundle ]]; then
    echo "$folder"
    exit 0
fi

if (($(du --summarize --block-size=1M "$cache" | cut -f1) > storage_megabytes_max)); then
    # A build that was interrupted leaves mounts.
    cut -d' ' -f2 /proc/mounts | { grep "^$cache/" || true; } | sort --reverse | xargs --no-run-if-empty umount
    rm -rf "${cache:?}"/*
fi
driver=overlay # vfs copies everything for each layer, but is possible everywhere
options=(--root "$cache/storage" --runroot "$cache/run")
buildah "${options[@]}" --storage-driver "$driver" images >/dev/null 2>&1 8>&- || driver=vfs
image() { buildah "${options[@]}" --storage-driver "$driver" "$@" >&2 8>&-; }
scratch=$(mktemp --directory)
trap 'rm -rf "$scratch"' EXIT

make_base() { # what an official slim image of Debian is made of, which is made in the same way
    echo "image: making the base image from Debian's packages" >&2
    local slim=(--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*'
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright')
    mmdebstrap --quiet --mode=root --variant=essential --include=apt "${slim[@]}" trixie "$scratch/base.tar" >&2 8>&- # with updates and security
    printf 'FROM scratch\nADD base.tar /\n' >"$scratch/Dockerfile"
    image build --quiet --isolation chroot --tag "$base" "$scratch"
    rm "$scratch/base.tar"
}
image inspect "$base" >/dev/null 2>&1 || make_base

native=native
if command -v cargo >/dev/null && [[ $(printf '1.88\n%s\n' "$(rustc --version | cut -d' ' -f2)" | sort -V | sed -n 1p) == 1.88 ]]; then
    mkdir "$scratch/native"
    cp "$(native/build.sh)" "$scratch/native"
    printf 'FROM scratch\nCOPY *.whl /wheels/\n' >"$scratch/native/Dockerfile"
    native=localhost/typha-wheels
    image build --quiet --timestamp 0 --tag "$native" "$scratch/native"
fi

# pip and cargo trust whom this machine trusts: its network may have an authority of its own.
printf '[global]\ncert = /run/authorities.pem\n' >"$scratch/pip.conf"
printf '[http]\ncainfo = "/run/authorities.pem"\n' >"$scratch/cargo.toml"
echo "image: building" >&2
if ! buildah "${options[@]}" --storage-driver "$driver" build --isolation chroot --layers --pull-never --timestamp 0 \
    --volume /etc/ssl/certs/ca-certificates.crt:/run/authorities.pem:ro --volume "$scratch/pip.conf:/etc/pip.conf:ro" \
    --volume "$scratch/cargo.toml:/.cargo/config.toml:ro" --build-arg NATIVE="$native" \
    --build-arg BUILD_DATE=1970-01-01T00:00:00Z --build-arg GIT_COMMIT=0123456789abcdef --build-arg SOURCE=https://example.org/typha \
    --build-arg VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" --tag localhost/typha . >"$scratch/log" 2>&1 8>&-; then
    tail -n 40 "$scratch/log" >&2
    exit 1
fi
rm -rf "$folder" "$cache/.new"
mkdir "$cache/.new"
image push --quiet localhost/typha "oci:$cache/.new/oci:typha"
umoci unpack --image "$cache/.new/oci:typha" "$cache/.new/bundle" >&2 8>&-
find "$cache" -maxdepth 1 -mmin +600 -name '????????????????' -exec rm -rf {} + # those of other states of the sources
mv "$cache/.new" "$folder" # whole or not at all
echo "$folder"
