#!/usr/bin/env bash
# Builds the wheel of typha_rustls, once, into a cache folder outside the repository, and prints its path. A second run waits
# for the first. Needs cargo and a C compiler, and maturin: in .venv, or what the variable MATURIN says. Progress goes to
# stderr. `build.sh lint` checks the sources with clippy instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

digest=$(cat build.sh Cargo.toml Cargo.lock.in pyproject.toml src/*.rs <(rustc --version --verbose) | sha256sum | cut -c1-16)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/typha-native"
folder="$cache/$digest"

prepare() { # the sources with a Cargo.lock, in a folder of their own
    rm -rf "$cache/source"
    mkdir -p "$cache/source"
    cp -r Cargo.toml pyproject.toml src "$cache/source"
    ./lock.sh restore >"$cache/source/Cargo.lock"
    # A folder for all versions of these sources: what did not change is not compiled again.
    export CARGO_TARGET_DIR="$cache/target"
    # The module tells where a panic was; the folders of this machine are nobody's affair.
    export RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$cache=/native"
}

mkdir -p "$cache"
exec 8>"$cache/.lock"
flock 8
if [[ ${1:-} == lint ]]; then
    if [[ ! -e $cache/linted-$digest ]]; then
        prepare
        cargo clippy --release --locked --quiet --manifest-path "$cache/source/Cargo.toml" -- --deny warnings >&2 8>&-
        touch "$cache/linted-$digest"
    fi
    exit
fi
mkdir -p "$folder"
if ! compgen -G "$folder/*.whl" >/dev/null; then
    maturin=${MATURIN:-$PWD/../.venv/bin/maturin}
    if [[ ! -x $maturin ]]; then
        echo "native: installing requirements/native.txt into .venv" >&2
        ../.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r ../requirements/native.txt >&2
    fi
    echo "native: building typha_rustls (a minute or two of two CPUs, mostly AWS-LC)" >&2
    prepare
    "$maturin" build --release --locked --quiet --manifest-path "$cache/source/Cargo.toml" \
        --out "$folder/new" >&2 8>&-
    mv "$folder"/new/*.whl "$folder" # whole or not at all: an interrupted build leaves nothing half done
fi
ls "$folder"/*.whl
