#!/usr/bin/env bash
# Thresholds on totals, and totals at a past instant. Checks what it sees.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hack/lib.sh
. "$here/../../hack/lib.sh"
in_pipeline "$here/pipeline.yaml"

account=account-$run
# book ID TYPE VALUE ORDER DAY: one record, whose answer comes after it was decided.
book() {
  post /records "$(record "$1-$run" "$account" "$2" "\"$3\"" EUR "$4" shop-1 "2026-01-$5T12:00:00Z")" \
    --header 'Prefer: wait=10' --fail-with-body | field 'it["status"]' >/dev/null
}
total() { get "/totals?destinationId=$account$1" | field '" ".join("%s %s in %s" % (t["total"], t["unit"], t["count"]) for t in it["totals"])'; }

say "an account goes over 1000, and over 3000 at once; an order goes below zero; a day goes over 500"
book a positive 400.00 order-1 01
book b positive 600.00 order-1 02   # 1000.00 is not above 1000; the second day is at 600.00
book c positive 0.01 order-1 03     # over 1000
book d positive 2500.00 order-2 04  # over 2000 and 3000, and over 500 on its day
book e negative 700.00 order-2 05
book f negative 2000.00 order-2 05  # the order is below zero
book g positive 700.00 order-1 06   # over 1000 once more, after the total returned; over 500 on its day
wait_for 30 "everything to apply" applied

alerts=$(stream totals.alerts "$account")
alert() { sed -n "$1p" <<<"$alerts" | field '"%s %s: %s steps, %s to %s" % (it["record"]["recordId"][0], it["totalAlert"]["name"], it["totalAlert"]["steps"], it["totalAlert"]["previousTotal"], it["totalAlert"]["total"])'; }
same "alerts" 7 "$(wc -l <<<"$alerts")"
same "the second record" "b day: 1 steps, 0.00 to 600.00" "$(alert 1)"
same "the third" "c account: 1 steps, 1000.00 to 1000.01" "$(alert 2)"
same "the fourth, of the account" "d account: 2 steps, 1000.01 to 3500.01" "$(alert 3)"
same "the fourth, of its day" "d day: 1 steps, 0.00 to 2500.00" "$(alert 4)"
same "the sixth" "f overdrawn: 1 steps, 1800.00 to -200.00" "$(alert 5)"
same "the seventh, of the account" "g account: 1 steps, 800.01 to 1500.01" "$(alert 6)"
same "the seventh, of its day" "g day: 1 steps, 0.00 to 700.00" "$(alert 7)"
same "alerts of the fourth" 2 "$(get "/records/d-$run" | field 'len(it["totalAlerts"])')"

say "totals now, and as they were when the fourth record was processed"
at=$(get "/records/d-$run" | field 'it["processedAt"]')
same "the account" "1500.01 EUR in 7" "$(total '')"
same "an order" "-200.00 EUR in 3" "$(total '&reference=order-2')"
same "the account before it" "1000.01 EUR in 3" "$(total "&at=$at")"
same "an order before it" "" "$(total "&reference=order-2&at=$at")"
millrace verify
