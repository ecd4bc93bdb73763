"""The limit on OpenMP's spinning: set in the command line's process before torch's import, and only there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gcsa_ext
from gcsa_ext.openmp import VARIABLES

# libgomp reads the environment when it is loaded, with torch. So a finder looks the variable up when torch is
# imported.
WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("when torch is imported:", os.environ.get("GOMP_SPINCOUNT"), flush=True)
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Watch())
"""

SCRIPT = "import sys\nfrom gcsa_ext.cli import main\nsys.exit(main())\n"
"""What pip writes for the entry point ``gcsa-ext``."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a script gcsa-ext, and a sitecustomize that prints the variable at torch's import."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "gcsa-ext").write_text(SCRIPT)
    return tmp_path


def seen_by_torch(folder: Path, *command: str, **environment: str) -> str:
    """GOMP_SPINCOUNT when a process imports torch, or "None"."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    paths = [str(folder), str(Path(gcsa_ext.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, *command],
        env={**inherited, "PYTHONPATH": os.pathsep.join(paths), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words, _, value = done.stdout.splitlines()[0].partition(": ")
    assert words == "when torch is imported"
    return value


COMMANDS = [("gcsa-ext", "info"), ("-m", "gcsa_ext"), ("-m", "gcsa_ext", "train", "--help")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_command_line_limits_spinning(folder: Path, command: tuple[str, ...]) -> None:
    assert seen_by_torch(folder, *command) == "1000"


@pytest.mark.parametrize("command", COMMANDS[:2], ids=" ".join)
def test_what_the_user_has_set_stays(folder: Path, command: tuple[str, ...]) -> None:
    assert seen_by_torch(folder, *command, GOMP_SPINCOUNT="7") == "7"
    assert seen_by_torch(folder, *command, OMP_WAIT_POLICY="PASSIVE") == "None"


@pytest.mark.parametrize(
    "program",
    [
        "import gcsa_ext",
        "import torch, gcsa_ext",
        "from gcsa_ext.cli import main; main(['--version'])",
        "import runpy, sys; sys.argv[1:] = ['gcsa_ext']; import gcsa_ext.nn",
    ],
)
def test_other_programs_are_left_alone(folder: Path, program: str) -> None:
    (folder / "program.py").write_text(
        f"import os\nbefore = dict(os.environ)\n{program}\nassert dict(os.environ) == before\n"
    )
    assert seen_by_torch(folder, "program.py") == "None"
    assert seen_by_torch(folder, "-m", "program", "gcsa_ext") == "None"


def test_workers_inherit_it(folder: Path) -> None:
    """The workers of a DataLoader and other processes that the command line starts get the same value."""
    (folder / "gcsa-ext").write_text(
        "import os, subprocess, sys\n"
        "from gcsa_ext.cli import main\n"
        "import torch\n"
        "class Values(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 2\n"
        "    def __getitem__(self, i): return int(os.environ['GOMP_SPINCOUNT'])\n"
        "if __name__ == '__main__':\n"
        "    for method in ('fork', 'spawn'):\n"
        "        options = dict(num_workers=1, multiprocessing_context=method)\n"
        "        loader = torch.utils.data.DataLoader(Values(), **options)\n"
        "        assert [int(value) for value in loader] == [1000, 1000]\n"
        "    shown = 'import os; print(os.environ[\"GOMP_SPINCOUNT\"])'\n"
        "    assert subprocess.check_output([sys.executable, '-c', shown], text=True) == '1000\\n'\n"
    )
    assert seen_by_torch(folder, "gcsa-ext") == "1000"


def test_info_says_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert gcsa_ext.info()["openmp"] == {}
    assert "spin for milliseconds" in gcsa_ext.format_info()
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert json.loads(json.dumps(gcsa_ext.info()))["openmp"] == {"GOMP_SPINCOUNT": "1000"}
    assert "GOMP_SPINCOUNT=1000, for all of torch" in gcsa_ext.format_info()
