"""The verb ``info``: print versions, backends, and why a backend cannot run."""

import argparse

from gcsa_ext import backends, format_info

SUMMARY = "print versions, backends, and why a backend cannot run"
DETAILS = (
    "The first use of an operator on a GPU compares its kernels with plain PyTorch. --prove does so now for "
    "all operators, dtypes and layouts."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--prove``."""
    parser.add_argument(
        "--prove",
        action="store_true",
        help="prove the kernels for GPUs on every GPU first, which compiles them and may take minutes",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what :func:`gcsa_ext.info` finds; returns the exit code."""
    if arguments.prove:
        backends.proof.prove_all()
    print(format_info())
    return 0
