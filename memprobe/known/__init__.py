"""Facts written for this project, in ``known.json``: relation -> template, paraphrases, and (subject, answer) pairs.

Further entries of a pair are aliases. Every template ends right before the answer, so that a base model
continues it.
"""
