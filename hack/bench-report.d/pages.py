"""docs/reports/performance.md and its plots."""

import statistics
import time

import duties
import figures
import plots


def table(head, rows):
    """A table; the first column is text."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value, form=",.0f"):
    return "–" if value is None else format(value, form)


def day(seconds):
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def machine(it):
    return f"{it['cores']} cores ({it['processor']}), {it['memory_mib'] / 1024:.0f} GiB, Linux {it['kernel']}"


def setting(settings):
    """The default, in words."""
    return (f"{settings['keys']:,} keys, {settings['shards']} shards, requests of {settings['batch']} records, "
            f"transactions of at most {settings['commit']:,}, {settings['workers']} `work`, sinks for processed records "
            "and alerts, no attributes, no duplicates, empty tables, ids in order")


def spread(found):
    return f"{statistics.median(found):.2f} [{found[0]:.2f}..{found[-1]:.2f}]" if found else "–"


def row(name, rounds, ratio):
    cells = [number(figures.median(rounds, figures.RATE)), ratio]
    cells += [number(figures.median(rounds, figure), ".1f") for figure in figures.PROCESSES.values()]
    cells += [number(figures.median(rounds, figure)) for figure in ("wal_bytes", "aof_bytes")]
    return [name, *cells]


def sweep(name, points):
    """A section, and its plots."""
    default = figures.default_rounds(points)
    head = [figures.TITLES[name], "records/s", "ratio to the default"]
    head += [f"{process}, µs" for process in figures.PROCESSES] + ["WAL, B", "AOF, B"]
    rows = [row(f"{figures.default_label(points[0])} (default)", default, "1")]
    for point in points:
        rows.append(row(figures.label(point), point["rounds"], spread(figures.ratios(point, figures.RATE))))
    rate = figures.median(default, figures.RATE)
    rates = [(f"{figures.default_label(points[0])} (default)", {"records/s": rate}, None)]
    usual = {process: figures.median(default, it) for process, it in figures.PROCESSES.items()}
    costs = [(rates[0][0], usual, None)]
    for point in points:
        least, middle, most = (rate * of(figures.ratios(point, figures.RATE)) for of in (min, statistics.median, max))
        rates.append((figures.label(point), {"records/s": middle}, (least, most)))
        parts = {process: figures.corrected(point, it, usual[process]) for process, it in figures.PROCESSES.items()}
        costs.append((figures.label(point), parts, None))
    title = figures.TITLES[name]
    plotted = {f"performance-{name}-rate.svg": plots.bars(f"{title}: records/s", rates),
               f"performance-{name}-cost.svg": plots.bars(f"{title}: processor time, µs/record", costs)}
    images = "\n".join(f"![{title}]({file})" for file in plotted)
    return f"### {title}\n\n{table(head, rows)}\n\n{images}\n", plotted


def measured(rounds, figure):
    return [it[figure] for it in rounds if figure in it]


def peer_rates(peers):
    """Per program: preloaded and together, as medians, in the order of the table."""
    found, compared = {}, peers["compared"]
    for at, build in enumerate(compared["builds"]):
        modes = {mode["mode"]: [it[figures.RATE] for it in mode["builds"][at]] for mode in compared["modes"]}
        name = "Python service" if build["name"] == "python" else "Millrace"
        found[name] = {"preloaded": modes["preloaded"], "together": modes["batches"]}
    for key, name in (("river", "River"), ("bullmq", "BullMQ")):
        if key in peers["peers"]:
            rounds = peers["peers"][key]["rounds"]
            found[name] = {kind: measured(rounds, f"{kind}_per_second") for kind in ("preloaded", "together")}
    return {name: found[name] for name in sorted(found, key=lambda name: (name != "Millrace", name))}


def peers_section(peers):
    rates = peer_rates(peers)
    own = {kind: statistics.median(values) for kind, values in rates["Millrace"].items()}
    rows, bars = [], []
    for name, kinds in rates.items():
        cells = []
        for kind, values in kinds.items():
            middle = statistics.median(values)
            cells += [f"{middle:,.0f} [{min(values):,.0f}..{max(values):,.0f}]", f"{own[kind] / middle:.2f}"]
            bars.append((f"{name}, {kind}", {"a second": middle}, (min(values), max(values))))
        rows.append([name, *cells])
    head = ["program", "preloaded, a second", "Millrace to it", "together, a second", "Millrace to it"]
    programs = [peer["versions"].items() for peer in peers["peers"].values()]
    versions = "; ".join(", ".join(f"{name} {it}" for name, it in versions) for versions in programs)
    lines = [
        "## Peers", "",
        f"Of {day(peers['ended_at'])}, {machine(peers['compared']['machine'])}, {peers['compared']['servers']}; {versions}.",
        "",
        "*Preloaded*: jobs or records are there before the workers start. *Together*: they come while workers run; of "
        "Millrace and of the Python service by HTTP, of the others by calls of their own library. River and BullMQ run "
        "jobs that do nothing; a job is compared with a record that is checked, counted, totalled and published.", "",
        table(head, rows), "", "![Peers](performance-peers.svg)", "",
    ]
    lines += [f"{name} was left out: {why}." for name, why in sorted(peers["left_out"].items())]
    names = ["Millrace", *duties.PEERS]
    rows = [[duty, "yes", *them] for duty, *them in duties.DUTIES]
    lines += ["Duties, as measured here:", "", table(["duty", *names], rows), ""]
    return "\n".join(lines), {"performance-peers.svg": plots.bars("Jobs or records a second", bars)}


def files(sweeps, peers):
    """The page and its plots, by name."""
    usual = figures.usual_rounds(sweeps)
    rates = sorted(it[figures.RATE] for it in usual)
    lines = [
        "# Performance", "",
        "`hack/bench-report` writes this page from [figures](figures): change nothing here. How it is measured, and how "
        "far to trust it: [benchmarks](../benchmarks.md). The costs as a model: [scaling](../scaling.md).", "",
    ]
    if figures.is_trial(sweeps["pairs"], sweeps["point_seconds"]):
        lines += ["**The sweeps are a trial of the tools, no measurement**: rounds for a point: "
                  f"{sweeps['pairs']}, of {sweeps['point_seconds']:g} s.", ""]
    if figures.is_trial(peers["rounds"], peers["seconds"]):
        lines += ["**The peers are a trial of the tools, no measurement**: rounds: "
                  f"{peers['rounds']}, of {peers['seconds']:g} s.", ""]
    lines += [
        "## Sweeps", "",
        f"Of {day(sweeps['ended_at'])}, {machine(sweeps['machine'])}, {sweeps['servers']}, {sweeps['build']}. Load, reader, "
        "servers and pipeline share the cores.", "",
        f"The default: {setting(sweeps['points'][0]['default'])}; `{sweeps['mode']}` of "
        f"[benchmarks](../benchmarks.md#modes). Over {len(rates)} rounds it did {statistics.median(rates):,.0f} records/s "
        f"[{rates[0]:,.0f}..{rates[-1]:,.0f}].", "",
        f"Rounds for a point: {sweeps['pairs']}, of about {sweeps['point_seconds']:g} s, each beside a round of the "
        "default. The ratio is that of the pairs: median [least..most]. Plots show the default's median times the ratio. "
        "µs and B are per record that was sent.", "",
    ]
    if sweeps["left_out"]:
        lines += [f"No time was left for {len(sweeps['left_out'])} points.", ""]
    found = {}
    for name, points in figures.by_sweep(sweeps).items():
        section, plotted = sweep(name, points)
        lines.append(section)
        found |= plotted
    section, plotted = peers_section(peers)
    return {"performance.md": "\n".join(lines) + "\n" + section, **found, **plotted}
