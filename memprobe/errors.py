"""The one exception that stands for bad input."""


class MemprobeError(Exception):
    """Something a user can mend: the message is one line that says what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with ``exit_code``.
    """

    exit_code = 2


class Interrupted(MemprobeError):
    """Ctrl-C in long work; the message says what was kept."""

    exit_code = 130
