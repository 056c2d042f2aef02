#!/usr/bin/env bash
# Builds the wheel of typha_rustls, once, into a cache folder outside the repository, and prints its path. A second run waits
# for the first. Needs cargo and a C compiler, and maturin: in .venv, or what the variable MATURIN says. Progress goes to
# stderr.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

digest=$(cat build.sh Cargo.toml Cargo.lock.in pyproject.toml src/*.rs <(rustc --version --verbose) | sha256sum | cut -c1-16)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/typha-native"
folder="$cache/$digest"

mkdir -p "$folder"
exec 8>"$cache/.lock"
flock 8
if ! compgen -G "$folder/*.whl" >/dev/null; then
    maturin=${MATURIN:-$PWD/../.venv/bin/maturin}
    if [[ ! -x $maturin ]]; then
        echo "native: installing requirements/native.txt into .venv" >&2
        ../.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r ../requirements/native.txt >&2
    fi
    echo "native: building typha_rustls (a minute or two of two CPUs, mostly AWS-LC)" >&2
    rm -rf "$cache/source"
    mkdir -p "$cache/source"
    cp -r Cargo.toml pyproject.toml src "$cache/source"
    ./lock.sh restore >"$cache/source/Cargo.lock"
    # A folder for all versions of these sources: what did not change is not compiled again.
    CARGO_TARGET_DIR="$cache/target" "$maturin" build --release --locked --quiet --manifest-path "$cache/source/Cargo.toml" \
        --out "$folder/new" >&2 8>&-
    mv "$folder"/new/*.whl "$folder" # whole or not at all: an interrupted build leaves nothing half done
fi
ls "$folder"/*.whl
