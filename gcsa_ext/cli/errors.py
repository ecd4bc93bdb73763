"""Errors as one line on standard error."""

import sys


def report_error(message: str) -> int:
    """Print the message behind the program's name; returns the exit code 1."""
    print(f"gcsa-ext: {message}", file=sys.stderr)
    return 1


def error_in_one_line(error: Exception) -> str:
    """The error's message without line breaks.

    The messages of ValueError, OSError and ImportError are whole sentences; others need the name of the type
    to be understood.
    """
    text = " ".join(str(error).split())
    if text and isinstance(error, (ValueError, OSError, ImportError)):
        return text
    return f"{type(error).__name__}: {text}"
