"""Inputs that were damaged on purpose: every one is read right, or refused in one line.

``python -m tests.fuzz --inputs 20000`` tries as many (``make fuzz``); a seeded few are among the tests. Input *i* under
seed *s* is always the same, so that what is found is found again: ``python -m tests.fuzz --only KIND:I --keep DIR``.

A failure is a traceback (an error that nobody foresaw counts, though the command line turns it into a line), a hang, a
table that was changed and is taken all the same, or an exit code without a line that says why.
"""
