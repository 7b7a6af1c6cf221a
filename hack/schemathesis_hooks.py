"""What schemathesis does not know by itself: how a generated value becomes lines of JSON."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx, value):
    """An array becomes a line for each element, everything else a line of its own."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    lines = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
