"""Errors that the user can mend: told in a line, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a flag, a file or a config. Its text says what was wrong and what to do."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a table: it offers the nearest, and lists them all."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(f"unknown {what} {name!r}.{hint} Known: {', '.join(known)}.")
