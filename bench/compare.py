"""PostgreSQL, PgBouncer and pgpool_proxy side by side in one run, on one machine, interleaved.

    python bench/compare.py                              everything, about 25 minutes
    python bench/compare.py --only simple-20 --rounds 1  one workload, some seconds
    python bench/compare.py --baseline-only              without pgpool_proxy

Each round of a workload runs on all targets in turn, so that what else the machine does hits all of them; the table has
the median of the rounds. CPU is the pooler's own (user and system time of the process and its children) per
transaction: the one figure that survives a change of machine. Ratios are to PgBouncer.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servers import POOL_SIZE, BenchError, PgBouncer, PgpoolProxy, Pooler, Postgres, machine
from workloads import Sample, Workload, all_workloads

DIRECT, PGBOUNCER, PROXY = "direct", "pgbouncer", "pgpool_proxy"
FIGURES = [field.name for field in fields(Sample)]

Medians = dict[str, float]
Results = dict[str, dict[str, Any]]


def main() -> None:
    options = parse_arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    workloads = [w for w in all_workloads() if not options.only or any(part in w.name for part in options.only)]
    if options.list:
        print("\n".join(workload.name for workload in workloads))
        return
    try:
        if not workloads:
            raise BenchError(f"no workload's name contains {' or '.join(options.only)} (--list shows all)")
        bench(workloads, options)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="workloads whose name contains this"
    )
    parser.add_argument("--list", action="store_true", help="show the names of the workloads")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (3); the median counts")
    parser.add_argument("--seconds", type=float, default=5, help="how long each round takes (5)")
    parser.add_argument("--scale", type=int, default=10, help="pgbench's scale (10: a million accounts)")
    parser.add_argument("--baseline-only", action="store_true", help="PostgreSQL and PgBouncer only")
    parser.add_argument("--no-direct", action="store_true", help="leave out PostgreSQL without a pooler")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for pgpool_proxy, such as workers=2"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where results are written")
    return parser.parse_args()


def bench(workloads: list[Workload], options: argparse.Namespace) -> None:
    poolers: dict[str, type[Pooler]] = {PGBOUNCER: PgBouncer}
    names = {PGBOUNCER: "PgBouncer " + ".".join(map(str, PgBouncer.version()))}
    if not options.baseline_only:
        names[PROXY] = PgpoolProxy.version()
        poolers[PROXY] = PgpoolProxy
    directory = Path(tempfile.mkdtemp(prefix="pgpool_proxy-bench-"))
    directory.chmod(0o755)
    postgres = Postgres(directory)
    names = {DIRECT: f"PostgreSQL {postgres.version}", **names}
    extra = dict(pair.split("=", 1) for pair in options.set)
    results: Results = {}
    begin = time.monotonic()
    try:
        say(f"setting up {names[DIRECT]}")
        postgres.start()
        postgres.fill(options.scale)
        for number, workload in enumerate(workloads, 1):
            say(f"[{number}/{len(workloads)}] {workload.name}")
            results[workload.name] = compare(workload, postgres, poolers, extra, directory, options)
    finally:
        postgres.stop()
        shutil.rmtree(directory)
    rounds = f"{options.rounds} rounds of {options.seconds:g} s, median"
    print(f"\n{', '.join(names.values())}; {rounds}; pool of {POOL_SIZE} servers\n")
    print_table(results, names)
    stem = options.out / datetime.now(UTC).strftime("compare-%Y%m%d-%H%M%S")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "targets": names,
        "machine": machine(),
        "options": {key: str(value) for key, value in vars(options).items()},
        "seconds": round(time.monotonic() - begin),
        "results": results,
    }
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{stem}.json")
    if plot(results, names, stem.with_suffix(".png")):
        print(f"{stem}.png")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- one workload ----------------------------------------------------------------------------------------------------


def compare(
    workload: Workload,
    postgres: Postgres,
    poolers: dict[str, type[Pooler]],
    extra: dict[str, str],
    directory: Path,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """All rounds of one workload: {"unit", "notes", target: {"median": ..., "rounds": [...]}}."""
    samples: dict[str, list[Sample]] = {}
    notes: dict[str, str] = {}
    for number in range(options.rounds):
        targets: list[str] = [DIRECT] if workload.direct and not options.no_direct else []
        targets += poolers
        if number % 2:
            targets.reverse()  # nobody is always the first after a pause
        for name in targets:
            if name in notes and notes[name].startswith("failed"):
                continue
            try:
                if name == DIRECT:
                    sample = workload.run(postgres, postgres, options.seconds)
                else:
                    settings, notes[name] = workload.settings_for(poolers[name])
                    settings = {**settings, **(extra if name == PROXY else {})}
                    place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
                    sample = run_on(poolers[name](name, place, postgres, settings), workload, postgres, options.seconds)
            except BenchError as error:
                notes[name] = f"failed: {error}"
                say(f"    {name:13} {notes[name]}")
                continue
            samples.setdefault(name, []).append(sample)
            say(f"    {name:13} {describe(sample, workload.unit)}")
    result: dict[str, Any] = {"unit": workload.unit, "notes": {name: note for name, note in notes.items() if note}}
    for name, rounds in samples.items():
        result[name] = {"median": medians(rounds), "rounds": [asdict(sample) for sample in rounds]}
    return result


def run_on(pooler: Pooler, workload: Workload, postgres: Postgres, seconds: float) -> Sample:
    """A fresh pooler for each round, so that no round inherits the memory or the servers of another."""
    try:
        pooler.start()  # type: ignore[attr-defined]
        return workload.run(postgres, pooler, seconds)
    finally:
        pooler.stop()


def medians(rounds: list[Sample]) -> Medians:
    found: Medians = {}
    for name in (*FIGURES, "cpu_us"):
        values = [value for sample in rounds if (value := getattr(sample, name)) is not None and not math.isnan(value)]
        if values:
            found[name] = statistics.median(values)
    return found


def describe(sample: Sample, unit: str) -> str:
    parts: list[str] = []
    if sample.per_second is not None:
        parts.append(f"{sample.per_second:10,.1f} {unit}/s")
    if sample.p50_us is not None and sample.p99_us is not None:
        parts.append(f"p50 {sample.p50_us / 1000:.3f} ms  p99 {sample.p99_us / 1000:.3f} ms")
    if sample.cpu_us is not None:
        parts.append(f"CPU {sample.cpu_us:,.1f} µs (user {sample.cpu_user_us:,.1f})")
    if sample.rss_per_client is not None:
        parts.append(f"{sample.rss_per_client:,.0f} B RSS, {sample.pss_per_client:,.0f} B PSS a client")
    return "  ".join(parts)


# --- what is shown ---------------------------------------------------------------------------------------------------


def print_table(results: Results, names: dict[str, str]) -> None:
    """A line per workload and target; behind a figure its ratio to PgBouncer's."""
    widths = (20, 13, 22, 20, 20, 28)
    heads = ("workload", "target", "per second", "p50 ms", "p99 ms", "CPU µs (user + system)")
    print("  ".join(f"{head:{width}}" for head, width in zip(heads, widths, strict=True)).rstrip())
    for workload, result in results.items():
        reference: Medians = result.get(PGBOUNCER, {}).get("median", {})
        for target in names:
            note = result["notes"].get(target, "")
            if target not in result:
                if note:
                    print(f"{workload:{widths[0]}}  {target:{widths[1]}}  {note}")
                continue
            found: Medians = result[target]["median"]
            compared = {} if target == PGBOUNCER else reference
            if "rss_per_client" in found:
                cells = [f"{figure(found, compared, f'{kind}_per_client')} B {kind.upper()}" for kind in ("rss", "pss")]
                cells = [f"{cells[0]}, {cells[1]} per idle client"]
            else:
                cpu = figure(found, compared, "cpu_us", digits=1)
                parts = f" ({found['cpu_user_us']:.1f} + {found['cpu_system_us']:.1f})" if "cpu_us" in found else ""
                cells = [
                    figure(found, compared, "per_second"),
                    figure(found, compared, "p50_us", 1 / 1000, 3),
                    figure(found, compared, "p99_us", 1 / 1000, 3),
                    cpu + parts,
                ]
            row = [workload, target, *cells]
            line = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False))
            print(f"{line.rstrip()}{'  * ' + note if note else ''}")


def figure(found: Medians, reference: Medians, key: str, factor: float = 1.0, digits: int = 0) -> str:
    if key not in found:
        return "-"
    text = f"{found[key] * factor:,.{digits}f}"
    return f"{text} ({found[key] / reference[key]:.2f}x)" if reference.get(key) else text


def plot(results: Results, names: dict[str, str], file: Path) -> bool:
    """Three panels of ratios to PgBouncer; False when matplotlib is not installed."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        say("no plot: matplotlib is not installed (pip install 'pgpool-proxy[bench]')")
        return False
    panels = {"per_second": "throughput (more is better)", "p99_us": "p99 latency (less is better)",
              "cpu_us": "pooler CPU per transaction (less is better)"}  # fmt: skip
    if all("rss_per_client" in result.get(PGBOUNCER, {}).get("median", {}) for result in results.values()):
        panels = {"rss_per_client": "RSS per idle client (less is better)"}
    workloads = list(reversed(results))
    figure_, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels) + 2, 1.5 + 0.45 * len(workloads)), sharey=True, squeeze=False
    )
    colours = {DIRECT: "#9aa5b1", PGBOUNCER: "#5b6c7d", PROXY: "#1f77b4"}
    for axis, (key, title) in zip(axes[0], panels.items(), strict=True):
        height = 0.8 / len(names)
        for index, target in enumerate(names):
            ratios = [ratio(results[workload], target, key) for workload in workloads]
            places = [row + 0.4 - height * (index + 0.5) for row in range(len(workloads))]
            bars = axis.barh(places, ratios, height, color=colours[target], label=names[target])
            labels = [f"{value:.2f}" if value else "" for value in ratios]
            axis.bar_label(bars, labels=labels, padding=2, fontsize=7)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("ratio to PgBouncer")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(range(len(workloads)), workloads)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure_.legend(handles, labels, loc="lower center", ncols=len(names), frameon=False)
    figure_.tight_layout(rect=(0, 0.6 / (1.5 + 0.45 * len(workloads)), 1, 1))
    figure_.savefig(file, dpi=120)
    plt.close(figure_)
    return True


def ratio(result: dict[str, Any], target: str, key: str) -> float:
    mine = result.get(target, {}).get("median", {}).get(key)
    reference = result.get(PGBOUNCER, {}).get("median", {}).get(key)
    return mine / reference if mine and reference else 0.0


if __name__ == "__main__":
    main()
