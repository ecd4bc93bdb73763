"""How long OpenMP's threads spin before they sleep where they wait for each other.

GCC's OpenMP (libgomp) lets a thread that waits for others spin for some milliseconds before it sleeps. If
other processes need the cores, the spinning thread may keep the thread that it waits for from its core.
libgomp reads the limit from the environment when it is loaded, which is when torch is imported. The limit
holds for all parallel regions of the process, torch's included. So this module must not import torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SPIN_COUNT = 1000
"""How often a waiting thread of the command line looks again before it sleeps."""

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""The environment variables that say how long a thread of libgomp spins."""


def limit_spinning() -> None:
    """In the command line's process, set GOMP_SPINCOUNT for it and for all processes that it starts.

    Nothing is set in other processes, where one of `VARIABLES` is set, and after torch was imported.
    """
    if _is_command_line() and "torch" not in sys.modules and not environment():
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def environment() -> dict[str, str]:
    """Those of `VARIABLES` that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def _is_command_line() -> bool:
    """Whether the program is ``gcsa-ext`` or ``python -m gcsa_ext``.

    For ``-m`` Python imports the package of a module before it knows the module's file. Until then
    sys.argv[0] is "-m", and the module's name is in sys.orig_argv in front of the module's arguments.
    """
    argv = getattr(sys, "argv", None) or [""]  # a program that embeds Python may have none
    if argv[0] == "-m":
        return sys.orig_argv[-len(argv)] == "gcsa_ext"
    return Path(argv[0]).name == "gcsa-ext"
