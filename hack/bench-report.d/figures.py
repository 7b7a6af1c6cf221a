"""The figures of a run: medians, and the points of sweeps beside their defaults."""

import json
import statistics

# Processes of a pipeline with their figure.
PROCESSES = {"serve": "serve_cpu_micros", "work": "work_cpu_micros", "Redis": "redis_cpu_micros",
             "Postgres": "postgres_cpu_micros"}
RATE = "records_per_second"
TITLES = {
    "keys": "Keys", "duplicates": "Share of duplicates", "batch": "Records of a request",
    "commit": "Most records of a transaction", "shards": "Shards", "workers": "Processes that work",
    "sinks": "Further sinks", "attributes": "Characters of attributes",
    "rollups": "Declared rollups", "partitions": "Partitions of earlier periods",
    "collisions": "One id to two shards", "rows": "Rows in the tables before",
    "rows-in-order": "Rows in the tables before, ids in order",
}


def read(path):
    return json.loads(path.read_text())


def joined(runs):
    """One run of sweeps with the points of several, which must be alike in all else."""
    alike = ("machine", "servers", "perf", "build", "mode", "pairs", "point_seconds")
    for name in alike:
        if len({json.dumps(run[name]) for run in runs}) > 1:
            raise SystemExit(f"bench-report: the runs of the sweeps differ in {name}: measure them with one build, on one machine")
    return {**runs[0], "ended_at": max(run["ended_at"] for run in runs),
            **{name: [it for run in runs for it in run[name]] for name in ("points", "left_out")}}


def write(content, path):
    """Writes figures with six digits, without white space."""
    def short(it):
        if isinstance(it, dict):
            return {name: short(value) for name, value in it.items()}
        if isinstance(it, list):
            return [short(value) for value in it]
        return float(f"{it:.6g}") if isinstance(it, float) else it

    path.write_text(json.dumps(short(content), ensure_ascii=False, separators=(",", ":")) + "\n")


def is_trial(pairs, seconds):
    """Whether so few rounds, of so many seconds, are a trial of the tools."""
    return pairs < 3 or seconds < 8


def median(rounds, figure):
    """The median of a figure; None where a round lacks it."""
    values = [it.get(figure) for it in rounds]
    return None if not values or None in values else statistics.median(values)


def ratios(point, figure):
    """Of the point to the default, pair by pair, in order; empty where the figure is not in each round."""
    pairs = [(it.get(figure), base.get(figure)) for it, base in zip(point["rounds"], point["default_rounds"])]
    return [] if any(None in pair or not pair[1] for pair in pairs) else sorted(it / base for it, base in pairs)


def label(point):
    """The setting of a point."""
    it = point["settings"]
    match point["sweep"]:
        case "keys":
            return "1,000, Zipf" if it["zipf"] else f"{it['keys']:,}"
        case "duplicates":
            return f"{it['duplicates']} %"
        case "sinks":
            return f"{it['more_sinks']}"
        case "collisions":
            return it["beside"].replace("-", " ")
        case "rows-in-order":
            return f"{it['rows']:,}"
        case sweep:
            return f"{it.get(sweep, 0):,}"


def default_label(point):
    return label({**point, "settings": point["default"]})


def by_sweep(sweeps):
    """Points of each sweep, in the order of the run."""
    found = {}
    for point in sweeps["points"]:
        found.setdefault(point["sweep"], []).append(point)
    return found


def default_rounds(points):
    """Rounds of the default beside these points."""
    return [it for point in points for it in point["default_rounds"]]


def usual_rounds(sweeps):
    """Rounds of the default of all sweeps that share it."""
    return default_rounds([point for point in sweeps["points"] if point["sweep"] not in ("rows", "collisions")])


def corrected(point, figure, default):
    """The figure as it would be beside the median of all defaults: that median, times the ratio within the pairs."""
    found = ratios(point, figure)
    return None if not found or default is None else default * statistics.median(found)
