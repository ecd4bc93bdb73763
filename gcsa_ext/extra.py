"""Imports of packages that only the extra ``[train]`` installs."""

import importlib
from typing import Any


def import_extra(module: str) -> Any:
    """Import ``module``, one of the packages behind the extra ``[train]``.

    Raises:
        ImportError: the package is missing or does not load; the message names the command that installs it
            and repeats the cause.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        # A package whose shared library does not load may raise OSError.
        raise ImportError(
            f"this part of gcsa_ext needs {module.partition('.')[0]!r}, which could not be imported "
            f'({error}). Install it with: pip install ".[train]" in a clone of gcsa_ext'
        ) from error
