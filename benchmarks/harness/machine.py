"""Where and of what something was measured: processor, versions, the revision of the sources."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

import gcsa_ext

ROOT = Path(__file__).resolve().parents[2]


def revision(root: Path = ROOT) -> str:
    """Of the sources, with "-dirty" behind it where files differ; "unknown" outside of a git repository."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is none."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    pairs = (line.partition(":") for line in file.read_text().split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def is_zen5() -> bool:
    """Whether the processor is an AMD Zen 5, which is family 26."""
    found = cpuinfo()
    return found.get("vendor_id") == "AuthenticAMD" and found.get("cpu family") == "26"


def description() -> dict[str, Any]:
    """The machine, the versions, the revision and today's date."""
    found = gcsa_ext.info()
    return {
        "processor": cpuinfo().get("model name", platform.processor()),
        "system": f"{platform.system()} {platform.machine()}",
        "isa": found["isa"],
        "threads": torch.get_num_threads(),
        "onednn": torch.backends.mkldnn.is_available(),
        "versions": {name: found["versions"][name] for name in ("python", "torch", "torchaudio")},
        "revision": revision(),
        "date": date.today().isoformat(),
    }


def write(file: Path, text: str) -> None:
    """Replace a file at once, so that it is never half written."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(file)


def write_json(file: Path, report: Mapping[str, Any]) -> None:
    """Write a report with a line for each entry, and for each element of an entry that is a list."""
    entries = []
    for name, value in report.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        entries.append(f" {json.dumps(name)}: {text}")
    write(file, "{\n" + ",\n".join(entries) + "\n}\n")
