"""How many cores this process may use: `workers = auto`."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """The cores of the affinity mask, fewer where a cgroup (version 1 or 2) allows less time than they have; at least 1."""
    cores = float(len(os.sched_getaffinity(0)))
    for directory in _own_groups(root, membership):
        quota = _quota(directory)
        if quota is not None:
            cores = min(cores, quota)
    return max(1, math.ceil(cores))


def _own_groups(root: Path, membership: Path) -> list[Path]:
    """The directories of our cgroups and of all above them: each may have a limit of its own."""
    found = [root, root / "cpu", root / "cpu,cpuacct"]
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        base = root if not controllers else root / controllers
        if not controllers or "cpu" in controllers.split(","):
            own = base / path.lstrip("/")
            found += [own, *[parent for parent in own.parents if parent.is_relative_to(base)]]
    return found


def _quota(directory: Path) -> float | None:
    """Cores' worth of time, or None where there is no limit."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (directory / "cpu.cfs_quota_us").read_text().strip()
            period = (directory / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # "max", or -1
    return int(quota) / int(period)
