"""The verb ``info``: print versions, backends, and why a backend cannot run."""

import argparse

from gcsa_ext import format_info

SUMMARY = "print versions, backends, and why a backend cannot run"
DETAILS = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """``info`` has no options."""


def run(arguments: argparse.Namespace) -> int:
    """Print what :func:`gcsa_ext.info` finds; returns the exit code."""
    print(format_info())
    return 0
