# Sourced by the scripts here and in examples/. Bash.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Outside the repository: what is downloaded or made once.
cache=${MILLRACE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/millrace}

say() { printf '== %s\n' "$*" >&2; }
die() { printf '!! %s\n' "$*" >&2; exit 1; }

# wait_for SECONDS WHAT COMMAND…: until the command succeeds.
wait_for() {
  local seconds=$1 what=$2 until
  shift 2
  until=$((SECONDS + seconds))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || die "waited ${seconds} s for $what"
    sleep 0.1
  done
}

# The binary: $MILLRACE, else built here. Debug unless MILLRACE_PROFILE=release.
millrace() {
  if [ -z "${MILLRACE:-}" ]; then
    local profile=${MILLRACE_PROFILE:-debug} flag=()
    [ "$profile" = release ] && flag=(--release)
    (cd "$root" && cargo build --locked --quiet --package millrace "${flag[@]}") || die "the build failed"
    MILLRACE=${CARGO_TARGET_DIR:-$root/target}/$profile/millrace
    export MILLRACE
  fi
  "$MILLRACE" "$@"
}

# same WHAT EXPECTED FOUND: ends the script when they differ.
same() {
  [ "$2" = "$3" ] || die "$1: expected $2, found $3"
  printf 'ok  %s: %s\n' "$1" "$3"
}

# get PATH: a GET of the pipeline.
get() { curl --silent --show-error --fail-with-body "$MILLRACE_URL$1"; }

# field EXPRESSION: what a Python expression over `it`, the JSON on standard input, gives.
field() { python3 -c 'import json, sys; it = json.load(sys.stdin, parse_float=str); print('"$1"')'; }

# Settled: nothing is queued, and every sink has published all.
settled() {
  get /stats | python3 "$root/hack/settled.py"
}
