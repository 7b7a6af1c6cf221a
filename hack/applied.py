"""Reads /stats on standard input; exits 0 when nothing is queued and every sink has carried all, else says what is left."""

import json
import sys

stats = json.load(sys.stdin)
left = {"backlog": stats.get("backlog")} | {sink["name"]: sink.get("lag") for sink in stats["sinks"]}
left = {name: count for name, count in left.items() if count != 0}
if left:
    sys.exit(f"not applied: {left}")
