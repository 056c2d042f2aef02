#!/usr/bin/env bash
# Cargo.lock.in has versions and checksums, but not the line that says from which registry: that is the machine's affair.
#   lock.sh restore   prints a Cargo.lock, with the line that this machine's cargo writes
#   lock.sh update    writes Cargo.lock.in anew, with newer versions where Cargo.toml allows them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/src"
touch "$scratch/src/lib.rs"

case ${1:-} in
restore)
    printf '[package]\nname = "any"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\ncfg-if = "1"\n' >"$scratch/Cargo.toml"
    (cd "$scratch" && cargo generate-lockfile --quiet)
    line=$(grep -m 1 '^source = ' "$scratch/Cargo.lock")
    awk -v line="$line" '/^checksum = / { print line } { print }' Cargo.lock.in
    ;;
update)
    cp Cargo.toml "$scratch"
    (cd "$scratch" && cargo generate-lockfile --quiet)
    grep -v '^source = ' "$scratch/Cargo.lock" >Cargo.lock.in
    ;;
*)
    sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
