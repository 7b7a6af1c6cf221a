#!/usr/bin/env bash
# 1,600 records to a receiver in Python, which verifies each delivery with the published library, dies in the middle, and
# changes its key: its totals are exact, and no number is missing. Checks what it sees.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hack/lib.sh
. "$here/../../hack/lib.sh"
python=$cache/standardwebhooks-1.1.0/bin/python
if ! "$python" -c 'import standardwebhooks' 2>/dev/null; then
  python3 -m venv "${python%/bin/python}"
  "$python" -m pip install --quiet --disable-pip-version-check standardwebhooks==1.1.0
fi
new_key() { printf 'whsec_%s' "$(head -c 32 /dev/urandom | base64)"; }
if [ -z "${MILLRACE_WEBHOOK_SECRETS_DIR:-}" ]; then
  MILLRACE_WEBHOOK_SECRETS_DIR=$(mktemp -d)
  export MILLRACE_WEBHOOK_SECRETS_DIR
  mkdir "$MILLRACE_WEBHOOK_SECRETS_DIR/billing-hook"
  new_key >"$MILLRACE_WEBHOOK_SECRETS_DIR/billing-hook/signing"
fi
in_pipeline "$here/pipeline.yaml"

secret=$MILLRACE_WEBHOOK_SECRETS_DIR/billing-hook/signing
work=$(mktemp -d)
receiver=
close() { [ -z "$receiver" ] || kill -9 "$receiver" 2>/dev/null || true; rm -rf "$work"; }
trap close EXIT
receive() {
  MILLRACE_SIGNING_KEYS=$1 "$python" "$here/receiver.py" 8737 "$work/receiver.db" >>"$work/receiver.log" 2>&1 &
  receiver=$!
}
received() { "$python" -c 'import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute("select count(*) from seen").fetchone()[0])' "$work/receiver.db"; }
has() { [ "$(received)" -ge "$1" ]; }

say "records in three units: the filter of the sink leaves one out"
first=$(cat "$secret")
receive "$first"
for unit in EUR USD JPY; do millrace send --generate 400 --keys 20 --set "unit=$unit" >/dev/null; done
wait_for 60 "some deliveries" has 100

say "the receiver dies, and starts again"
kill -9 "$receiver"
wait "$receiver" 2>/dev/null || true
receive "$first"
wait_for 120 "all deliveries" has 800

say "another key: both sign until the receiver has changed"
second=$(new_key)
printf '%s\n%s\n' "$second" "$first" >"$secret.new"
mv "$secret.new" "$secret"
kill "$receiver"
receive "$second"
for unit in EUR USD; do millrace send --generate 200 --keys 20 --set "unit=$unit" >/dev/null; done
wait_for 120 "the rest" has 1200

same "deliveries applied" 1200 "$(received)"
same "gaps" 0 "$(grep -c '^gap' "$work/receiver.log" || true)"
get "/records/rollups?groupBy=destinationId&groupBy=unit" >"$work/sums.json"
"$python" - "$work/sums.json" "$work/receiver.db" <<'PYTHON'
import json, sqlite3, sys
from decimal import Decimal
sums = {}
for row in json.load(open(sys.argv[1]))["items"]:
    for total in row["totals"]:
        if total["unit"] in ("EUR", "USD"):
            sums[row["destinationId"], total["unit"]] = Decimal(total["total"])
held = {(d, u): Decimal(t) for d, u, t in sqlite3.connect(sys.argv[2]).execute("select destination, unit, total from totals")}
assert held == sums and len(held) > 20, (len(held), len(sums))
print("ok  the receiver's totals equal the pipeline's:", len(held))
PYTHON
same "deliveries that did not succeed" 0 "$(get /deliveries | field 'len(it["items"])')"
