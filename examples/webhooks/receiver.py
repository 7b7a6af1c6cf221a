#!/usr/bin/env python3
"""A receiver of webhooks: verifies, leaves out duplicates, detects gaps, and prints the totals of each destination.

receiver.py PORT DATABASE: MILLRACE_SIGNING_KEYS has the keys that it accepts, with white space between.
Needs the package standardwebhooks.
"""

import json
import os
import sqlite3
import sys
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

LOCK = threading.Lock()
KEYS = [Webhook(key) for key in os.environ["MILLRACE_SIGNING_KEYS"].split()]


def verified(body, headers):
    """The delivery, if one of the keys has signed it."""
    for key in KEYS:
        try:
            return key.verify(body, headers)
        except WebhookVerificationError:
            continue
    return None


def apply(database, delivery_id, delivery):
    """Applies a delivery once: what it changes and its id are one transaction."""
    record = delivery["data"]["record"]
    destination = record["destinationId"]
    with LOCK, database:
        if database.execute("insert or ignore into seen values (?)", [delivery_id]).rowcount == 0:
            return "repeated"
        row = database.execute("select seq, total from totals where destination = ? and unit = ?", [destination, record["unit"]])
        total = Decimal((row.fetchone() or (0, "0"))[1])
        last = database.execute("select max(seq) from totals where destination = ?", [destination]).fetchone()[0]
        total += Decimal(record["value"]) * (1 if record["type"] == "positive" else -1)
        database.execute(
            "insert into totals values (?, ?, ?, ?) on conflict (destination, unit) do update set seq = excluded.seq, "
            "total = excluded.total", [destination, record["unit"], delivery["seq"], str(total)])
    if delivery["previousSeq"] is not None and delivery["previousSeq"] != last:
        return f"gap of {destination}: {delivery['previousSeq']} is missing"
    return "applied"


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        delivery = verified(body, dict(self.headers))
        if delivery is None:
            print("refused: no key has signed it", flush=True)
            self.answer(401)
            return
        print(apply(self.server.database, self.headers["webhook-id"], delivery), flush=True)
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def main():
    database = sqlite3.connect(sys.argv[2], check_same_thread=False)
    database.executescript(
        "create table if not exists seen (id text primary key);"
        "create table if not exists totals (destination, unit, seq, total, primary key (destination, unit));")
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver)
    server.database = database
    server.serve_forever()


main()
