"""The tables of docs/reliability.md."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from .markdown import machine, number, table


def attack(results: Path) -> str:
    """Outcomes of the commands on damaged inputs."""
    found = json.loads((results / "attack.json").read_text(encoding="utf-8"))
    broken = Counter(failure["target"] for failure in found["failures"])
    codes, targets = ("exit 0", "exit 1", "exit 2"), found["targets"]
    lines = [[name, *(str(of.get(c, 0)) for c in codes), str(broken[name])] for name, of in targets.items()]
    note = f"*{found['inputs']:,} inputs; the longest took {number(found['longest_s'])} s.*\n\n"
    header = ["input", "read (exit 0)", "a video failed (1)", "refused (2)", "promise broken"]
    return machine(found["environment"]) + note + table(header, lines)


def kills(results: Path) -> str:
    """Runs that were killed and resumed."""
    found = json.loads((results / "attack_kills.json").read_text(encoding="utf-8"))
    broken = Counter(failure["target"] for failure in found["kill_failures"])
    lines = []
    for name, of in found["kills"].items():
        command, _, whom = name.partition(": ")
        lines.append([f"`{command}`", whom, str(of["kills"]), str(of["compared"]), str(broken[name])])
    lines.append(["all", "", *(str(sum(int(line[i]) for line in lines)) for i in (2, 3, 4))])
    return (
        machine(found["environment"])
        + "\n"
        + table(["command", "killed", "kills", "results compared", "promise broken"], lines)
    )


def contended(found: dict[str, Any]) -> str:
    """Seconds of networks on idle cores and beside busy processes."""
    lines = []
    for row in found["rows"]:
        beside = f"{row['busy']} busy processes" if row["busy"] else "idle"
        name = f"{row['network']}, {row['windows']} windows".replace(" 1 windows", " 1 window")
        taken = f" ({' or '.join(map(str, row['threads']))})" if row["variant"] == "by itself" else ""
        lines.append([name, beside, row["variant"] + taken, number(row["seconds"])])
    note = f"*{found['environment']['cores']} cores; median of {len(found['rows'][0]['rounds'])} rounds.*\n\n"
    return note + table(["network", "beside", "threads", "seconds"], lines)


def shard_kills(found: dict[str, Any]) -> str:
    """Shards that were killed, resumed and merged."""
    names = ("runs", "kills", "main", "worker", "group", "lost", "doubled")
    lines = [
        [row["part_format"], *(str(row[name]) for name in names), "yes" if row["equal"] else "no"]
        for row in found["rows"]
    ]
    header = ["parts", "runs", "killed", "the process", "a worker", "all of them", "videos lost", "videos doubled"]
    return table([*header, "bytes equal"], lines)


def ray_kills(found: dict[str, Any]) -> str:
    """Runs on Ray whose workers, machines and drivers were killed."""
    names = ("runs", "kills", "worker", "machine", "driver", "lost", "doubled")
    lines = [
        [row["cluster"], row["part_format"], *(str(row[name]) for name in names), "yes" if row["equal"] else "no"]
        for row in found["rows"]
    ]
    header = ["cluster", "parts", "runs", "killed", "a worker", "a machine", "the driver", "videos lost"]
    return table([*header, "videos doubled", "bytes equal"], lines)
