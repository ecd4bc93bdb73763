"""The command ``gcsa-ext``."""

from gcsa_ext.cli.command import main

__all__ = ["main"]
