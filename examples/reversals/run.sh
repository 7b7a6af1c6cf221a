#!/usr/bin/env bash
# Orders that are taken back: in part, then what remains, and never more. Checks what it sees.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hack/lib.sh
. "$here/../../hack/lib.sh"
in_pipeline "$here/pipeline.yaml"

customer=customer-$run
order=order-$run
# send PATH BODY [CURL ARGUMENT…]: the answer after the record was decided, and its status.
send() {
  local path=$1 body=$2
  shift 2
  post "$path" "$body" --header 'Prefer: wait=10' --write-out '\n{"httpStatus":%{http_code}}\n' "$@"
}
status() { tail -n 1 <<<"$1" | field 'it["httpStatus"]'; }
body() { head -n 1 <<<"$1"; }
total() { get "/records/aggregations?destinationId=$customer&records=false" | field 'it["groups"][0]["totals"][0]["total"]'; }

say "an order, and another"
same "order" 200 "$(status "$(send /records "$(record "$order" "$customer" positive 100.00 EUR orders shop)")")"
same "another" 200 "$(status "$(send /records "$(record "$order-b" "$customer" positive 5.00 EUR orders shop)")")"

say "one item comes back, and the request is repeated"
part='{"value": "30.00", "reason": "one item came back"}'
same "return" 200 "$(status "$(send "/records/$order/reversal" "$part" --header "Idempotency-Key: return-$run")")"
again=$(send "/records/$order/reversal" "$part" --header "Idempotency-Key: return-$run")
same "the same again" "200 True" "$(status "$again") $(body "$again" | field 'it.get("duplicate")')"
same "total" 75.00 "$(total)"

say "more than remains is refused"
refused=$(send "/records/$order/reversal" '{"recordId": "'"$order"'-more", "value": "70.01", "reason": "all"}')
same "refused" "422 exceeds_original" "$(status "$refused") $(body "$refused" | field 'it["code"]')"

say "the order is cancelled: what remains is taken back, once"
same "cancelled" 200 "$(status "$(send "/records/$order/reversal" '{"reason": "cancelled"}')")"
again=$(send "/records/$order/reversal" '{"reason": "cancelled"}')
same "the same again" "200 True" "$(status "$again") $(body "$again" | field 'it.get("duplicate")')"
same "total" 5.00 "$(total)"

say "the link in both directions, and sums without it"
same "reversals" "2 0.00" "$(get "/records/$order" | field '"{count} {rest}".format(**it["reversals"])')"
reversal=$(get "/records/$order" | field 'it["reversals"]["newest"][0]["recordId"]')
same "reverses" "$order 70.00" "$(get "/records/$reversal" | field '"{reverses} {value}".format(**it["record"])')"
same "records" 1 "$(get "/records/aggregations?destinationId=$customer&reversed=exclude" | field 'it["groups"][0]["count"]')"
wait_for 30 "everything to apply" applied
same "booked" 4 "$(stream reversals.booked "$customer" | wc -l)"
millrace verify
