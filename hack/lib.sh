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
    if [ "$SECONDS" -ge "$until" ]; then
      "$@" >&2 || true # What it has to say.
      die "waited ${seconds} s for $what"
    fi
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

# Applied: nothing is queued, and every sink has published all.
applied() {
  get /stats | python3 "$root/hack/applied.py"
}

# in_pipeline MANIFEST [ARGUMENT…]: continues inside a pipeline of this manifest; starts the calling script again if need be.
in_pipeline() {
  local manifest=$1
  shift
  if [ "${MILLRACE_IN:-}" != "$manifest" ]; then
    MILLRACE_IN=$manifest exec "$root/hack/with-dev" "$manifest" "$0" "$@"
  fi
}

# post PATH BODY [CURL ARGUMENT…]: a POST of JSON; prints the answer, also a refusal.
post() {
  local path=$1 body=$2
  shift 2
  curl --silent --show-error --header 'Content-Type: application/json' --data "$body" "$@" "$MILLRACE_URL$path"
}

# record ID DESTINATION TYPE VALUE UNIT REFERENCE SOURCE [TIME]: a record as JSON; without an id when that is empty.
record() {
  local id=
  [ -z "$1" ] || id="\"recordId\":\"$1\","
  printf '{%s"time":"%s","sourceId":"%s","destinationId":"%s","type":"%s","value":%s,"unit":"%s","reference":"%s"}' \
    "$id" "${8:-2026-01-31T12:00:00Z}" "$7" "$2" "$3" "$4" "$5" "$6"
}

# stream KEY DESTINATION: data of a sink's entries about a destination, one JSON object a line.
stream() {
  redis-cli --no-auth-warning --json -u "$MILLRACE_REDIS_URL" XRANGE "$1" - + | python3 -c '
import json, sys
for _, fields in json.load(sys.stdin):
    entry = dict(zip(fields[::2], fields[1::2])) if isinstance(fields, list) else fields
    data = json.loads(entry["data"])
    of = data.get("record") or data.get("payload") or {}
    if of.get("destinationId") == sys.argv[1]:
        print(json.dumps(data))' "$2"
}

# A name that no earlier run has used.
run=$(date +%s)-$$
