#!/usr/bin/env bash
# 20,000 events of 20 topics, 30 % of them sent twice: counted once each. Checks what it sees.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hack/lib.sh
. "$here/../../hack/lib.sh"
in_pipeline "$here/pipeline.yaml"

before=$(get /stats)
audit_before=$(get "/audit/summary?limit=1000")
# A seed of its own for every run, so that this run's ids are new.
seed=$(date +%s%N)
say "an event of topic T by user U is destinationId T, sourceId U, value 1"
sent=$(millrace send --generate 20000 --duplicates 0.3 --keys 20 --seed "$seed" \
  --set type=positive --set value=1 --set unit=event --json)
same "accepted" 20000 "$(field 'it["accepted"]' <<<"$sent")"
same "sent twice" 6000 "$(field 'it["generated"]["duplicates"]' <<<"$sent")"
wait_for 120 "the events to be processed" applied

after=$(get /stats)
more() { python3 -c 'import json, sys; a, b = (json.loads(text)[sys.argv[3]] for text in sys.argv[1:3]); print(b - a)' "$before" "$after" "$1"; }
same "received" 20000 "$(more received)"
same "processed" 14000 "$(more processed)"
same "duplicates" 6000 "$(more duplicates)"
same "conflicts" 0 "$(more conflicts)"
same "topics" 20 "$(field 'it["destinations"]' <<<"$after")"

say "each topic's count is the number of different events that were generated for it"
get "/records/rollups?groupBy=destinationId" | python3 -c '
import json, sys
rows = json.load(sys.stdin)["items"]
for row in rows:
    (total,) = row["totals"]
    assert total["total"] == str(row["count"]), row
print("ok  counts of", len(rows), "topics equal the sums of their values")'

say "the audit trail and its summary"
audit_after=$(get "/audit/summary?limit=1000")
facts() {
  python3 -c 'import json, sys
a, b = (json.loads(text)["actions"].get(sys.argv[3], 0) for text in sys.argv[1:3]); print(b - a)' "$audit_before" "$audit_after" "$1"
}
same "PROCESSED" 14000 "$(facts PROCESSED)"
same "DROPPED" 6000 "$(facts DROPPED)"
id=$(get "/audit?action=DROPPED&limit=1" | field 'it["items"][0]["recordId"]')
get "/audit?recordId=$id" | python3 -c '
import json, sys
actions = [fact["action"] for fact in json.load(sys.stdin)["items"]]
assert actions.count("PROCESSED") == 1 and "DROPPED" in actions and "RECEIVED" in actions, actions
print("ok  facts about one event that was sent twice:", *actions)'
millrace verify
