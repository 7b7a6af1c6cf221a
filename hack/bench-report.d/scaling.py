"""The computed parts of docs/scaling.md: the cost model that the sweeps fit, and the first limit at higher rates.

A part stands between `<!-- computed: NAME -->` and `<!-- end -->`.
"""

import math
import re
import statistics

import figures
from pages import day, machine, number, table

RATES = (10_000, 100_000, 1_000_000)
# The share of a processor, a disk or a shard that may be used for long.
SHARE = 0.7
# Assumed of one Postgres server.
POSTGRES_CORES, WAL_MB = 32, 500
MOST_SHARDS = 256
COSTS = {**{f"{name}, µs": it for name, it in figures.PROCESSES.items()}, "WAL, B": "wal_bytes", "AOF, B": "aof_bytes"}
# A sweep that fits a cost: its heading, and how often the cost comes in a record of these settings.
FITS = {
    "batch": ("a request", lambda it: 1 / it["batch"]),
    # It has whole entries. A request makes one for each shard.
    "commit": ("a transaction", lambda it: 1 / max(it["commit"], it["batch"] / it["shards"])),
    "sinks": ("a further sink", lambda it: it["more_sinks"]),
    "attributes": ("a KiB of attributes", lambda it: it["attributes"] / 1024),
    "duplicates": ("a duplicate instead", lambda it: it["duplicates"] / 100),
}


def fit(points, figure, often):
    """Cost of one more, by least squares through the default, and the largest relative error at a point, or None where
    there is only one point."""
    default = figures.median(figures.default_rounds(points), figure)
    at = [(often(it["settings"]) - often(it["default"]), figures.corrected(it, figure, default)) for it in points]
    at = [(x, cost - default) for x, cost in at if cost is not None]
    if not at:
        return None
    slope = sum(x * more for x, more in at) / sum(x * x for x, _ in at)
    return slope, max(abs(slope * x - more) / (default + more) for x, more in at) if len(at) > 1 else None


def costs(sweeps):
    """A table: for each cost the default's, and that of one more of each kind."""
    by_sweep, usual = figures.by_sweep(sweeps), figures.usual_rounds(sweeps)
    fits = {name: it for name, it in FITS.items() if name in by_sweep}
    rows = []
    for cost, figure in COSTS.items():
        cells = [number(figures.median(usual, figure), ",.1f")]
        for name, (_, often) in fits.items():
            found = fit(by_sweep[name], figure, often)
            error = f" (±{found[1] * 100:.0f} %)" if found and found[1] is not None else ""
            cells.append("–" if found is None else f"{found[0]:+,.1f}{error}")
        rows.append([cost, *cells])
    head = ["cost of", "a record of the default", *(head for head, _ in fits.values())]
    return (f"{trial(sweeps)}{machine(sweeps['machine'])}, {sweeps['servers']}, {day(sweeps['ended_at'])}; pairs of rounds for a point: "
            f"{sweeps['pairs']}. In brackets the largest error of the fit at a point.\n\n{table(head, rows)}")


def trial(sweeps):
    return "**From a trial of the tools.** " if figures.is_trial(sweeps["pairs"], sweeps["point_seconds"]) else ""


def shard_rate(sweeps):
    """Records a second of one key, thus of one shard; None without that point."""
    found = [it["rounds"] for it in sweeps["points"] if it["sweep"] == "keys" and it["settings"]["keys"] == 1]
    return figures.median(found[0], figures.RATE) if found else None


def use(sweeps, rate):
    """How often each limit fits into a rate: above 1 it is passed."""
    usual = figures.usual_rounds(sweeps)
    cores = {name: rate * figures.median(usual, it) / 1e6 for name, it in figures.PROCESSES.items()}
    wal, aof = (rate * figures.median(usual, it) / 1e6 for it in ("wal_bytes", "aof_bytes"))
    limits = {"one Redis server": cores["Redis"] / SHARE,
              "processors of one Postgres": cores["Postgres"] / SHARE / POSTGRES_CORES,
              "WAL of one Postgres": wal / SHARE / WAL_MB}
    one = shard_rate(sweeps)
    if one:
        limits["shards"] = rate / (one * SHARE) / MOST_SHARDS
    return cores, wal, aof, limits


REMEDY = {
    "one Redis server": lambda n: f"Redis Cluster of {n} primaries",
    "processors of one Postgres": lambda n: f"{n} pipelines with a Postgres each",
    "WAL of one Postgres": lambda n: f"{n} pipelines with a Postgres each",
    "shards": lambda n: f"{n} pipelines",
}


def limits(sweeps):
    """A table: what each rate needs, and the limit that is passed first."""
    rows, one = [], shard_rate(sweeps)
    for rate in RATES:
        cores, wal, aof, found = use(sweeps, rate)
        worst = sorted(found.items(), key=lambda it: (-it[1], it[0]))
        passed = [f"{name}: {REMEDY[name](math.ceil(n))}" for name, n in worst if n > 1]
        first = "; then ".join(passed) or f"none; nearest: {worst[0][0]}, {worst[0][1] * 100:.0f} % of its limit"
        shards = f"{math.ceil(rate / (one * SHARE)):,}" if one else "–"
        rows.append([f"{rate:,}", *(f"{cores[name]:,.1f}" for name in figures.PROCESSES), f"{wal:,.0f}", f"{aof:,.0f}",
                     shards, f"{wal * 0.0864:,.1f}", first])
    head = ["records/s", *(f"{name}, cores" for name in figures.PROCESSES), "WAL, MB/s", "AOF, MB/s", "shards at least",
            "WAL, TB/day", "limits passed, the first one first, with a remedy"]
    return f"{trial(sweeps)}**Computed, not measured.**\n\n{table(head, rows)}"


def shares(sweeps):
    """A list of the remedies that a sweep tried."""
    lines = []
    for sweep, what in (("workers", "`work`"), ("shards", "shards"), ("commit", "records of a transaction at most"),
                        ("batch", "records of a request"), ("rows", "rows in the tables before")):
        for point in figures.by_sweep(sweeps).get(sweep, ()):
            found = figures.ratios(point, figures.RATE)
            lines.append(f"- {figures.label(point)} {what} instead of {figures.default_label(point)}: "
                         f"{statistics.median(found):.2f} times the records/s [{found[0]:.2f}..{found[-1]:.2f}]")
    return "\n".join(lines)


PARTS = {"costs": costs, "limits": limits, "tried": shares}


def filled(text, sweeps):
    """The page, with its computed parts."""
    def part(match):
        return f"{match[1]}\n{PARTS[match[2]](sweeps)}\n{match[3]}"

    return re.sub(r"(<!-- computed: (\w+) -->).*?(<!-- end -->)", part, text, flags=re.S)
