#!/usr/bin/env bash
# Records, notifications with the summary of earlier ones, alerts. Checks what it sees.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hack/lib.sh
. "$here/../../hack/lib.sh"
in_pipeline "$here/pipeline.yaml"

account=account-$run
say "three records on $account; amounts are exact, as JSON numbers and as strings"
post /records "$(record "a-$run" "$account" positive 125.50 EUR order-1 shop-1)" --fail-with-body; echo
post /records "$(record "b-$run" "$account" positive '"1000.01"' EUR order-1 shop-1)" --fail-with-body; echo
post /records "$(record "c-$run" "$account" negative 0.000000001 EUR order-1 shop-1)" --fail-with-body; echo
say "the first one again: a duplicate, counted once"
post /records "$(record "a-$run" "$account" positive 125.5 EUR order-1 shop-1)" --fail-with-body; echo
wait_for 30 "the records to be processed" applied

totals=$(get "/records/aggregations?destinationId=$account&startTime=2026-01-01T00:00:00Z")
same "records of $account" 3 "$(field 'it["groups"][0]["count"]' <<<"$totals")"
same "their total" 1125.509999999 "$(field 'it["groups"][0]["totals"][0]["total"]' <<<"$totals")"
positive=$(get "/records/aggregations?destinationId=$account&type=positive&records=false")
same "the positive ones' total" 1125.51 "$(field 'it["groups"][0]["totals"][0]["total"]' <<<"$positive")"
same "status of the first" processed "$(get "/records/a-$run" | field 'it["status"]')"

notifications=$(stream records.notifications "$account")
same "notifications" 3 "$(wc -l <<<"$notifications")"
summary() { sed -n "$1p" <<<"$notifications" | field '"%s before, %s" % (it["summary"]["previousCount"], it["summary"]["previousTotal"])'; }
same "summary of the first" "0 before, 0" "$(summary 1)"
same "summary of the second" "1 before, 125.50" "$(summary 2)"
same "summary of the third" "2 before, 1125.51" "$(summary 3)"
alerts=$(stream records.alerts "$account")
same "alerts" 1 "$(wc -l <<<"$alerts")"
same "alert" "1000.01 above 1000.00" "$(field '"%s above %s" % (it["record"]["value"], it["threshold"])' <<<"$alerts")"
millrace verify
