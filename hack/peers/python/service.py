"""A plain Python service with the duties that a team would write first, for `hack/peers/run`.

service.py migrate | serve | work, with Millrace's variables, so that millrace-compare measures it as it does a build.
FastAPI checks records and adds them to a Redis stream. Each of two workers takes a hundred at a time; one transaction
writes records, totals and an outbox; then the worker adds notifications and alerts to streams.
"""

import asyncio
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import Literal

import asyncpg
import orjson
import redis.asyncio as redis
import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, TypeAdapter, ValidationError

BATCH = 100
# Processes: one alone uses one core.
WORKERS = 2
THRESHOLD = 1000
NAME = re.search(r"name: ([\w-]+)", open(os.environ["MILLRACE_PIPELINE"]).read())[1]
INPUT, NOTIFICATIONS, ALERTS = f"{NAME}.records", f"{NAME}.notifications", f"{NAME}.alerts"
SCHEMA = """
create table if not exists records (record_id text primary key, time timestamptz not null, source_id text not null,
    destination_id text not null, type text not null, value numeric not null, unit text not null, reference text not null);
create table if not exists totals (destination_id text, reference text, unit text, count bigint not null,
    sum numeric not null, primary key (destination_id, reference, unit));
create table if not exists outbox (id bigserial primary key, record_id text not null, body jsonb not null);
"""


class Record(BaseModel):
    recordId: str
    time: datetime
    sourceId: str
    destinationId: str
    type: Literal["positive", "negative"]
    value: Decimal
    unit: str
    reference: str


RECORD = TypeAdapter(Record)


@asynccontextmanager
async def lifespan(app):
    app.state.redis = redis.from_url(os.environ["MILLRACE_REDIS_URL"])
    yield
    await app.state.redis.aclose()


app = FastAPI(lifespan=lifespan)


@app.get("/ready")
async def ready():
    return Response()


async def add(request, lines):
    try:
        for line in lines:
            RECORD.validate_json(line)
    except ValidationError as error:
        return Response(str(error), status_code=422)
    pipeline = request.app.state.redis.pipeline(transaction=False)
    for line in lines:
        pipeline.xadd(INPUT, {"d": line})
    await pipeline.execute()
    return Response(status_code=202)


@app.post("/records")
async def single(request: Request):
    return await add(request, [await request.body()])


@app.post("/records/batch")
async def batch(request: Request):
    return await add(request, (await request.body()).splitlines())


def key(record):
    return record["destinationId"], record["reference"], record["unit"]


async def apply(postgres, streams, entries):
    """Decides a batch, and publishes after the commit."""
    records = {}
    for _, fields in entries:  # The first of an id counts.
        record = orjson.loads(fields[b"d"])
        records.setdefault(record["recordId"], record)
    rows = [(r["recordId"], datetime.fromisoformat(r["time"]), r["sourceId"], r["destinationId"], r["type"],
             Decimal(r["value"]), r["unit"], r["reference"]) for r in records.values()]
    async with postgres.transaction():
        new = {row[0] for row in await postgres.fetch(
            "insert into records select * from unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[],"
            " $6::numeric[], $7::text[], $8::text[]) on conflict do nothing returning record_id", *map(list, zip(*rows)))}
        fresh = [record for record in records.values() if record["recordId"] in new]
        if fresh:
            bodies = await add_to_totals(postgres, fresh)
            await postgres.execute("insert into outbox (record_id, body) select * from unnest($1::text[], $2::jsonb[])",
                                   [record["recordId"] for record in fresh], [body.decode() for body in bodies])
    pipeline = streams.pipeline(transaction=False)
    for record, body in zip(fresh, bodies if fresh else []):
        pipeline.xadd(NOTIFICATIONS, {"data": body})
        if float(record["value"]) > THRESHOLD:
            pipeline.xadd(ALERTS, {"data": body})
    pipeline.xack(INPUT, "workers", *(entry for entry, _ in entries))
    await pipeline.execute()


async def add_to_totals(postgres, fresh):
    """Adds records to their totals; returns their notifications, each with the total before it."""
    keys = sorted({key(record) for record in fresh})  # One order of locks: two workers do not deadlock.
    columns = list(map(list, zip(*keys)))
    await postgres.execute("insert into totals select *, 0, 0 from unnest($1::text[], $2::text[], $3::text[])"
                           " on conflict do nothing", *columns)
    totals = {tuple(row)[:3]: [row[3], row[4]] for row in await postgres.fetch(
        "select t.* from totals t join unnest($1::text[], $2::text[], $3::text[]) u (d, r, u)"
        " on (t.destination_id, t.reference, t.unit) = (u.d, u.r, u.u) order by 1, 2, 3 for update of t", *columns)}
    bodies = []
    for record in fresh:
        total = totals[key(record)]
        summary = {"previousCount": total[0], "previousTotal": str(total[1]), "unit": record["unit"]}
        bodies.append(orjson.dumps({"record": record, "summary": summary}))
        total[0] += 1
        total[1] += Decimal(record["value"]) * (1 if record["type"] == "positive" else -1)
    await postgres.execute(
        "update totals t set count = u.c, sum = u.s from unnest($1::text[], $2::text[], $3::text[], $4::bigint[],"
        " $5::numeric[]) u (d, r, u, c, s) where (t.destination_id, t.reference, t.unit) = (u.d, u.r, u.u)",
        *columns, [totals[k][0] for k in keys], [totals[k][1] for k in keys])
    return bodies


async def work(parent):
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    streams = redis.from_url(os.environ["MILLRACE_REDIS_URL"])
    postgres = await asyncpg.connect(os.environ["MILLRACE_POSTGRES_URL"])
    try:
        await streams.xgroup_create(INPUT, "workers", "0", mkstream=True)
    except redis.ResponseError:
        pass  # It exists.
    consumer = f"worker-{os.getpid()}"
    while os.getppid() == parent:
        for _, entries in await streams.xreadgroup("workers", consumer, {INPUT: ">"}, count=BATCH, block=500) or []:
            await apply(postgres, streams, entries)


def fork_workers():
    """Starts the workers, and waits until they end."""
    workers, parent = [], os.getpid()
    for _ in range(WORKERS):
        worker = os.fork()
        if worker == 0:
            try:
                uvloop.run(work(parent))
            except asyncio.CancelledError:
                pass
            return
        workers.append(worker)
    signal.signal(signal.SIGTERM, lambda *_: [os.kill(worker, signal.SIGTERM) for worker in workers])
    for worker in workers:
        if os.waitpid(worker, 0)[1]:
            sys.exit(1)


async def migrate():
    postgres = await asyncpg.connect(os.environ["MILLRACE_POSTGRES_URL"])
    await postgres.execute(SCHEMA)
    await postgres.close()


def serve():
    # uvicorn raises the signal again once it has ended in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    host, port = os.environ["MILLRACE_LISTEN"].rsplit(":", 1)
    uvicorn.run(app, host=host, port=int(port), access_log=False, log_level="warning")


match sys.argv[1]:
    case "serve":
        serve()
    case "work":
        fork_workers()
    case "migrate":
        uvloop.run(migrate())
