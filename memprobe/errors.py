"""The one exception that stands for bad input."""


class MemprobeError(Exception):
    """Something a user can mend: the message is one line that says what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with code 2.
    """
