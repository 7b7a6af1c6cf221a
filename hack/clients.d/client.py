"""Sends, waits, reads pages and totals by the client that openapi-generator makes for Python."""

import os
import urllib.parse
from datetime import datetime, timezone
from decimal import Decimal

import millrace_client as millrace

TOTAL = "12345678901234567.89"
LARGEST = "999999999999999"


def record(number: int, value: str) -> millrace.RecordInput:
    return millrace.RecordInput(
        record_id=f"python-{number}",
        time=datetime(2026, 1, 31, 12, 0, number, tzinfo=timezone.utc),
        source_id="shop-7",
        destination_id="python",
        type="positive",
        value=millrace.RecordInputValue(value),
        unit="EUR",
        reference="invoice-9",
        attributes={"channel": "web"},
    )


configuration = millrace.Configuration(host=os.environ["MILLRACE_URL"])
with millrace.ApiClient(configuration) as client:
    records, sums = millrace.RecordsApi(client), millrace.SumsApi(client)

    processed = records.send_record(record(0, LARGEST), prefer="wait=30")
    assert processed.status == "processed", processed
    again = records.send_record(record(0, LARGEST), prefer="wait=30")
    assert again.duplicate and again.seq == processed.seq, again

    # Twelve times the largest value, and what is missing to a total that no float holds.
    values = [LARGEST] * 11 + [str(Decimal(TOTAL) - 12 * Decimal(LARGEST))]
    report = records.send_records([record(number, value) for number, value in enumerate(values, 1)])
    assert (report.accepted, report.rejected) == (12, 0), report
    last = records.send_record(record(12, values[-1]), prefer="wait=30")
    assert last.duplicate, last

    ids, cursor = [], None
    while True:
        page = records.list_records(destination_id="python", limit=5, cursor=cursor)
        ids += [item.record_id for item in page.items]
        if not page.next_cursor:
            break
        cursor = page.next_cursor
    assert sorted(ids) == sorted(f"python-{number}" for number in range(13)), ids

    (group,) = sums.aggregate_records(destination_id="python").groups
    (total,) = group.totals
    assert (total.unit, total.count, total.total) == ("EUR", 13, TOTAL), total
    assert sum(Decimal(item.value) for item in group.records) == Decimal(TOTAL)

    history = records.get_record("python-12")
    assert history.record.value == values[-1], history
    assert history.record.attributes == {"channel": "web"}, history

    try:
        records.send_record(record(13, "1.0000000001"))
        raise AssertionError("ten fractional digits were accepted")
    except millrace.ApiException as error:
        assert (error.status, error.data.code, error.data.pointer) == (422, "invalid_value", "/value"), error.data
    try:
        records.get_record("python-none")
        raise AssertionError("a record that does not exist was found")
    except millrace.ApiException as error:
        assert (error.status, error.data.code) == (404, "not_found"), error.data
print("python:", TOTAL, "read exactly from", urllib.parse.urlsplit(configuration.host).netloc)
