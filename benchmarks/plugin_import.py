"""Measure the time that the plugin adds to `import verl`.

    python -m benchmarks.plugin_import [pairs=11]

Pairs of fresh processes, one with the plugin and one without, in alternating order; each times the import itself, by
the wall clock and by the processor time it used (which other work on the machine disturbs less).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from verl_s2d.platforms.environment import cpu_environment

_IMPORT = """
import time
wall, cpu = time.perf_counter(), time.process_time()
import verl
print("S2D", time.perf_counter() - wall, time.process_time() - cpu)
"""


def main(pairs: int) -> None:
    """Measure and print; the last lines are a row for RESULTS.md."""
    _milliseconds("auto"), _milliseconds("none")  # into the file cache
    times: dict[str, list[tuple[float, float]]] = {"none": [], "auto": []}
    for pair in range(pairs):
        for plugins in ("none", "auto") if pair % 2 else ("auto", "none"):
            times[plugins].append(_milliseconds(plugins))
    print(f"python -m benchmarks.plugin_import pairs={pairs}   ({os.cpu_count()} cores, load {os.getloadavg()[1]:.1f})")
    print(
        "| clock | import verl (ms) | with the plugin (ms) | added, median of pairs (ms) | pairs |\n" + "|---" * 5 + "|"
    )
    for i, clock in enumerate(("wall", "processor")):
        without, with_plugin = ([t[i] for t in times[plugins]] for plugins in ("none", "auto"))
        added = statistics.median(b - a for a, b in zip(without, with_plugin, strict=True))
        medians = statistics.median(without), statistics.median(with_plugin)
        print(f"| {clock} | {medians[0]:.0f} | {medians[1]:.0f} | {added:.0f} | {pairs} |")


def _milliseconds(plugins: str) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT],
        env={**os.environ, **cpu_environment(), "VERL_USE_EXTERNAL_PLUGINS": plugins},
        capture_output=True,
        text=True,
        check=True,
    )
    answer = next(line for line in done.stdout.splitlines() if line.startswith("S2D "))
    wall, processor = map(float, answer.split()[1:])
    return 1000 * wall, 1000 * processor


if __name__ == "__main__":
    main(int(sys.argv[1].removeprefix("pairs=")) if sys.argv[1:] else 11)
