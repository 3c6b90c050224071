"""Errors that the command line prints as one line, with exit code 2, and how messages count."""

from collections.abc import Sequence


def counted(count: int, noun: str, many: str = "") -> str:
    """A count with its noun for a message: "1 row", "2 rows"; many: a plural that does not end in s alone."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


class UserError(Exception):
    """An error that the user can correct: one line that names the file or field, what is wrong, and what corrects it.

    again: the correction is to make the stage again, with these settings changed (section.field=value; maybe none). Code inside a
    stage need not know the command: `Run.stage` adds it.
    """

    def __init__(self, message: str, again: Sequence[str] | None = None) -> None:
        super().__init__(message)
        self.again = again


class StageStopped(UserError):
    """A stage had to stop (NaN loss, full disk); its partial folder stays and the same command resumes it."""
