#!/usr/bin/env bash
# Accounts: idempotency keys, a balance that may not go below zero, dead letters, replay. Checks what it sees.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hack/lib.sh
. "$here/../../hack/lib.sh"
in_pipeline "$here/pipeline.yaml"

account=account-$run
# book TYPE VALUE KEY: one transaction under an idempotency key; the answer after it was decided, and its status.
book() {
  post /records "$(record '' "$account" "$1" "$2" EUR main teller-1)" \
    --header "Idempotency-Key: $account-$3" --header 'Prefer: wait=10' --write-out '\n{"httpStatus":%{http_code}}\n'
}
status() { tail -n 1 <<<"$1" | field 'it["httpStatus"]'; }
body() { head -n 1 <<<"$1"; }
balance() { get "/records/aggregations?destinationId=$account&records=false" | field 'it["groups"][0]["totals"][0]["total"]'; }

say "a deposit, and a withdrawal that is sent twice under one key"
same "deposit" 200 "$(status "$(book positive 100.00 1)")"
same "withdrawal" 200 "$(status "$(book negative 30.00 2)")"
again=$(book negative 30.00 2)
same "the same again" "200 True" "$(status "$again") $(body "$again" | field 'it.get("duplicate")')"
same "balance" 70.00 "$(balance)"

say "the same key for another amount"
same "conflict" "409 record_conflict" "$(answer=$(book negative 31.00 2); echo "$(status "$answer") $(body "$answer" | field 'it["code"]')")"

say "a withdrawal that the balance does not cover"
refused=$(book negative 100.00 3)
same "refused" "422 dead_lettered" "$(status "$refused") $(body "$refused" | field 'it["code"]')"
dead_letters=$(get "/dead-letters?state=open&destinationId=$account")
same "reason" below_minimum_total "$(field 'it["items"][0]["reason"]' <<<"$dead_letters")"
same "balance" 70.00 "$(balance)"
dead_letter=$(field 'it["items"][0]["id"]' <<<"$dead_letters")

say "after another deposit it is replayed, and asking twice decides it once"
same "deposit" 200 "$(status "$(book positive 50.00 4)")"
same "dry run" 1 "$(post "/dead-letters/replay?dryRun=true&destinationId=$account" '' --fail-with-body | field 'it["matching"]')"
for _ in 1 2; do
  post "/dead-letters/$dead_letter/replay" '' | field 'it.get("status")' >/dev/null
done
closed() { [ "$(get "/dead-letters?state=replayed&destinationId=$account" | field 'len(it["items"])')" = 1 ]; }
wait_for 30 "the replay to be decided" closed
wait_for 30 "everything to apply" applied
same "balance" 20.00 "$(balance)"
same "open dead letters" 0 "$(get "/dead-letters?state=open&destinationId=$account" | field 'len(it["items"])')"
same "booked" 4 "$(stream transactions.booked "$account" | wc -l)"
same "announced refusals" 1 "$(stream transactions.refused "$account" | wc -l)"
millrace verify
