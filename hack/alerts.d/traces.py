"""One trace from a client's request to the notification, in a collector; its id in log lines; limits of log lines a second."""

import json
import secrets
import sys
import time

LINES = 10
# What the trace has: the request, the transaction of its record, the append of its notification.
STEPS = {"http.request.handle", "process.record.commit", "publish.record.append"}


def start(live, binary):
    """A collector that writes spans to a file; later processes send theirs to it."""
    port = live.free_port()
    live.spans = live.folder / "spans.json"
    configuration = {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
        "exporters": {"file": {"path": str(live.spans)}},
        "service": {"telemetry": {"metrics": {"level": "none"}}, "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}}},
    }
    (live.folder / "collector.yaml").write_text(json.dumps(configuration))
    live.start("collector", binary, f"--config=file:{live.folder}/collector.yaml")
    live.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{port}"


def spans(live, trace):
    """The spans of a trace, by name."""
    found = {}
    text = live.spans.read_text() if live.spans.exists() else ""
    for line in text.splitlines(keepends=True):
        # The last line may not be whole yet.
        for resource in json.loads(line)["resourceSpans"] if line.endswith("\n") else ():
            role = next(one["value"]["stringValue"] for one in resource["resource"]["attributes"] if one["key"] == "millrace.role")
            for span in (span for scope in resource["scopeSpans"] for span in scope["spans"] if span["traceId"] == trace):
                found[span["name"]] = span | {"role": role}
    return found


def lines(live, event):
    text = (live.folder / "work.log").read_text().splitlines(keepends=True)
    return [line for line in map(json.loads, (line for line in text if line.endswith("\n"))) if line.get("event") == event]


def check(live, wait_for, say):
    one_trace(live, wait_for, say)
    limited_lines(live, wait_for, say)


def one_trace(live, wait_for, say):
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    record = live.record()
    if live.request("POST", "/records", record, headers=headers) != 202:
        sys.exit("!! the traced record was not accepted")
    wait_for("a span of each step", lambda: STEPS <= spans(live, trace).keys())
    found = spans(live, trace)
    request = found["http.request.handle"]
    roles = {name: span["role"] for name, span in found.items()}
    if request["parentSpanId"] != parent or roles != {"http.request.handle": "serve", "process.record.commit": "work", "publish.record.append": "work"}:
        sys.exit(f"!! spans: {found}")
    # The steps in the worker continue the request, and the notification carries the same context.
    carried = [span["parentSpanId"] for name, span in found.items() if name != "http.request.handle"]
    entries = live.redis("XREVRANGE", f"{live.name}.events", "+", "-", "COUNT", "2000")
    if set(carried) != {request["spanId"]} or f"00-{trace}-{request['spanId']}-01" not in entries:
        sys.exit(f"!! parents {carried}, the request is {request['spanId']}")
    live.request("POST", "/records", record | {"value": "999"}, headers=headers)
    conflict = wait_for("the line of a conflict", lambda: [line for line in lines(live, "worker.record.conflicted") if line["record_id"] == record["recordId"]])
    if conflict[0]["trace_id"] != trace:
        sys.exit(f"!! {conflict}")
    say(f"one trace has {', '.join(sorted(found))}; the notification and the line of a conflict carry it")


def limited_lines(live, wait_for, say):
    """A flood of conflicts, without any other load: at most ten lines a second, and a count of the rest."""
    record, event, flood = live.record(), "worker.record.conflicted", 2_000
    live.request("POST", "/records", record)
    logged = lambda: sum(line["record_id"] == record["recordId"] for line in lines(live, event))
    left_out = lambda: sum(line["left_out"] for line in lines(live, "telemetry.lines.left_out") if line["of"] == event)
    began = time.time()
    live.request("POST", "/records/batch", [record | {"value": str(1_000 + n)} for n in range(flood)])
    wait_for("a line or a count of every conflict", lambda: logged() + left_out() == flood)
    if logged() > LINES * (1 + time.time() - began):
        sys.exit(f"!! {logged()} lines in {time.time() - began:.1f} s")
    say(f"{flood} conflicts are {logged()} lines, and a count of the rest")
