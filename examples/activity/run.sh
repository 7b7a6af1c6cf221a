#!/usr/bin/env bash
# Page views from a CSV file; exact unique users per page and minute, compared with what Python counts in the same file.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hack/lib.sh
. "$here/../../hack/lib.sh"
in_pipeline "$here/pipeline.yaml"

files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT
say "10,000 views of 5 pages by 300 users within 20 minutes, times as a clock in Berlin shows them"
python3 - "$run" >"$files/views.csv" <<'PY'
import csv, datetime, random, sys
run, choose = sys.argv[1], random.Random(1)
out = csv.writer(sys.stdout, lineterminator="\n")
out.writerow(["page", "user", "at", "browser"])
for _ in range(10_000):
    at = datetime.datetime(2026, 3, 2, 9) + datetime.timedelta(milliseconds=choose.randrange(20 * 60 * 1000))
    out.writerow([f"/p{choose.randrange(5)}-{run}", f"u{choose.randrange(300)}", at.isoformat(), choose.choice("abc")])
PY
views=(send "$files/views.csv" --map page=destinationId --map user=sourceId --map at=time --map browser=attributes.browser
  --set type=positive --set value=1 --set unit=view --set reference=web --time-zone Europe/Berlin --idempotency-key "views-$run")
millrace "${views[@]}"
say "the same file again, grown by one row: only that row is new"
echo "/p0-$run,u0,2026-03-02T09:00:00,a" >>"$files/views.csv"
millrace "${views[@]}"
wait_for 120 "the views to be processed" applied

for page in 0 1 2 3 4; do
  curl --silent --show-error --fail-with-body --get "$MILLRACE_URL/records/rollups" --data window=1m --data distinct=sourceId \
    --data-urlencode "destinationId=/p$page-$run" >"$files/p$page.json"
done
python3 - "$files" <<'PY'
import csv, datetime, json, pathlib, sys
files = pathlib.Path(sys.argv[1])
views, users = {}, {}
for row in csv.DictReader((files / "views.csv").open()):
    at = datetime.datetime.fromisoformat(row["at"]).replace(tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
    key = row["page"][:3], at.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:00Z")
    views[key] = views.get(key, 0) + 1
    users.setdefault(key, set()).add(row["user"])
found = {}
for page in range(5):
    for item in json.loads((files / f"p{page}.json").read_text())["items"]:
        found[f"/p{page}", item["windowStart"]] = item["count"], item["distinctSourceIds"]
expected = {key: (views[key], len(users[key])) for key in views}
if found != expected:
    sys.exit(f"!! differs: {sorted(set(found.items()) ^ set(expected.items()))[:5]}")
print(f"ok  views and unique users of {len(found)} pages and minutes, {sum(views.values())} views")
PY
millrace verify
