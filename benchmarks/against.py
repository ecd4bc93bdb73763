"""Is this gcsa_ext as fast as another revision's? ``python benchmarks/against.py REVISION``.

Exports the revision from git, renames its package to gcsa_ext_peer, compiles it, and times GCSA of both
packages and of plain PyTorch in one process, taking turns, in evaluation and in training. Before that, what
they compute is compared with float64. Prints how the installed gcsa_ext stands to its budget; the exit
status is 1 if a limit is missed. How fast large maps must be beside plain PyTorch is judged on a Zen 5 alone.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from harness import verdicts
from harness.case import COMPILED, EAGER, OURS, Call, Case, shape_name
from harness.disturbances import WAITED, Disturbances
from harness.errors import relative_error
from harness.machine import ROOT, description, is_zen5
from harness.operators import MAPS, gcsa_case
from harness.package import build
from harness.timing import measure
from harness.verdicts import Verdict

PEER = "gcsa_ext_peer"
LARGE, TINY = tuple((8, *sizes) for sizes in MAPS), (1, 64, 7, 7)
SLOWDOWN = 1.12
"""Largest time of this revision over the other one's on LARGE maps."""
OVER_BEST_PEER = {False: 4.3, True: 3.8}
"""Least speed on LARGE maps, in terms of plain PyTorch's fastest; by whether it is training."""
OVER_EAGER = {False: 2.3, True: 1.5}
"""Least speed on the TINY map, in terms of eager PyTorch's in the contiguous layout."""


def export(revision: str, folder: Path) -> None:
    """The revision's sources in `folder`, with the package renamed to gcsa_ext_peer.

    Environment variables keep their names, which are in capitals.
    """
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "--format=tar", revision], capture_output=True, check=True
    )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    (folder / OURS).rename(folder / PEER)
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        file.write_text(text.replace(OURS, PEER).replace("gcsa-ext", "gcsa-ext-peer"))


def install(revision: str, cache: Path) -> Path:
    """A folder with the built package of the revision; built once per commit and version of Python."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{revision}^{{commit}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode != 0:
        sys.exit(f"benchmarks/against.py: git knows no revision {revision!r}: {found.stderr.strip()}")
    folder = cache / f"{found.stdout.strip()}-{sys.implementation.cache_tag}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"building {revision} into {folder}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as sources:
            export(revision, Path(sources))
            reason = build(Path(sources), folder, "cmake.define.GCSA_EXT_CUDA=OFF")
        if reason is not None:
            sys.exit(f"benchmarks/against.py: {revision}: {reason}")
        (folder / "complete").touch()
    return folder


def contenders(case: Case, peer: type[torch.nn.Module], compiled: bool) -> dict[str, Call]:
    """All that is timed, with the same weights, input and gradient, after a comparison with float64.

    Args:
        case: of GCSA.
        peer: the other revision's class GCSA.
        compiled: torch.compile is a peer, too.
    """
    found = {name: case.build(name) for name in (OURS, *case.peers()) if compiled or name != COMPILED}
    ours, module = found[OURS], peer(case.shape[1])
    module.train(case.backward).load_state_dict(ours.function.state_dict())
    found[PEER] = Call(module, ours.inputs, ours.grad, ours.backward)
    exact = case.build(EAGER, torch.float64)()
    for name, call in found.items():
        error = relative_error(call(), exact)
        if not error <= case.tolerance:
            raise ArithmeticError(f"{name}, {case}: error {error:.1e} against float64")
    return found


def judge(
    what: str, times: dict[str, float], shape: Sequence[int], training: bool, zen5: bool
) -> list[Verdict]:
    """What the budget says about one shape.

    Args:
        times: median seconds by contender.
    """
    plain = {name: seconds for name, seconds in times.items() if name not in (OURS, PEER)}
    best = min(plain, key=lambda name: plain[name])

    def over(peer: str, limit: float, zen5_alone: bool) -> Verdict:
        found = plain[peer] / times[OURS]
        note = f"{peer} {1e3 * plain[peer]:.3g} ms"
        if zen5_alone and not zen5:
            found, note = None, f"the limit is for a Zen 5; here {found:.2f}, {note}"
        return Verdict(what, found, "at least", limit, "times its speed", note)

    if tuple(shape) == TINY:
        return [over(EAGER, OVER_EAGER[training], zen5_alone=False)]
    note = f"ours {1e3 * times[OURS]:.3g} ms, the other revision {1e3 * times[PEER]:.3g}"
    slowdown = Verdict(
        what, times[OURS] / times[PEER], "at most", SLOWDOWN, "times the other revision's time", note
    )
    return [slowdown, over(best, OVER_BEST_PEER[training], zen5_alone=True)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="of this repository, for example a tag or a commit")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each of ten rows (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out of the peers")
    parser.add_argument(
        "--cache",
        type=Path,
        default=ROOT / "build" / "against",
        help="folder for builds (default: %(default)s)",
    )
    return parser.parse_args()


def main() -> int:
    """Build, measure and print; the exit status."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    sys.path.append(str(install(arguments.revision, arguments.cache.resolve())))
    peer = importlib.import_module(f"{PEER}.nn").GCSA
    lines, judged, disturbed = [], list[Verdict](), list[str]()
    for shape in (*LARGE, TINY):
        for training in (False, True):
            what = f"{'training' if training else 'evaluation'} {shape_name(shape)}"
            print(what, file=sys.stderr, flush=True)
            watch = Disturbances()
            case = gcsa_case(shape, training, backward=training)
            calls = contenders(case, peer, not arguments.no_compile)
            spans = measure(calls, arguments.seconds, most_rounds=100_000, between=watch.between)
            times = {name: statistics.median(span) for name, span in spans.items()}
            found: dict[str, Any] = watch.found()
            cells = [f"{1e3 * seconds:.4g}" for seconds in times.values()]
            ratio = f"**{times[OURS] / times[PEER]:.3f}**"
            separate = f"{found['rounds_on_separate_caches']} of {len(spans[OURS])}"
            lines.append(f"| {' | '.join([what, *cells, ratio, separate])} |")
            disturbed += [what] * (found["waited"] > WAITED)
            judged += judge(what, times, shape, training, is_zen5())
    head = ["GCSA, ms (median)", *spans, f"over {arguments.revision}", "cores apart"]
    machine = description()
    print(
        f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads, torch "
        f"{machine['versions']['torch']}, revision {machine['revision']} beside {arguments.revision}.\n"
    )
    print("\n".join([f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|", *lines]))
    if disturbed:
        print("\nOther processes were in the way of: " + ", ".join(disturbed) + ".")
    print("\n" + verdicts.table(judged))
    return 1 if any(verdict.met is False for verdict in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
