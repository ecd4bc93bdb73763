"""The command line ``gcsa-ext VERB``: its parser, and how it ends."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Sequence
from typing import Protocol

from gcsa_ext import __version__
from gcsa_ext.cli import check, demo, evaluate, info, predict, train
from gcsa_ext.cli.errors import error_in_one_line, report_error
from gcsa_ext.cli.options import DefaultsFormatter


class Verb(Protocol):
    """A module of one verb.

    Its functions import the packages of the extra ``[train]`` when they run, so that ``info`` and every
    ``--help`` work on any installation.
    """

    SUMMARY: str
    """What the verb does, for the list of verbs."""
    DETAILS: str
    """Whole sentences for the verb's help, behind the summary; may be empty."""

    def add_options(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


VERBS: dict[str, Verb] = {
    "info": info,
    "check": check,
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: those of the command line, without the program's name; by default the process's.

    Returns:
        0 on success; 1 if the verb failed, with the reason in one line on standard error; 2 if the arguments
        are not valid.
    """
    parser = _parser()
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has printed its help or its error message
        return int(stop.code or 0)
    try:
        code: int = parsed.run(parsed)
        return code
    except KeyboardInterrupt:
        return report_error("interrupted")
    except Exception as error:
        if parsed.debug:
            traceback.print_exc()
            return 1
        return report_error(error_in_one_line(error))


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="on an error, show the whole traceback")
    parser = argparse.ArgumentParser(
        prog="gcsa-ext",
        description="Audio-visual expression recognition with fused channel-spatial attention.",
    )
    parser.add_argument("--version", action="version", version=f"gcsa-ext {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        added = verbs.add_parser(
            name,
            parents=[common],
            help=verb.SUMMARY,
            description=f"{verb.SUMMARY[0].upper()}{verb.SUMMARY[1:]}. {verb.DETAILS}",
            formatter_class=DefaultsFormatter,
        )
        verb.add_options(added)
        added.set_defaults(run=verb.run)
    return parser
