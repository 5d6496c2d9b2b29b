"""``python -m memprobe``: the command line."""

from memprobe.cli import main

main()
