"""A probe directory joins another: its finished checkpoints become the other's, file by file.

So processes probe beside each other, each in a directory of its own, and hold the common one only while files are
copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from memprobe.errors import MemprobeError
from memprobe.files import replacing
from memprobe.probe_writer import locked, open_or_start, write_run, write_summary
from memprobe.probes import RUN, open_probe, read_run, table_file
from memprobe.records import factoids_from_frame
from memprobe.residuals import without_residuals
from memprobe.sameness import other_checkpoint


def join_probe(part: Path, into: Path, order: Sequence[str] = ()) -> list[str]:
    """Adds the finished checkpoints of a probe directory to another one, which is made if it is not there.

    Their tables are added, and not the residual stream that was kept of them. Checkpoints that it has already stay as
    they are. The answers that were watched for may be others under the same names: each checkpoint's entry says which
    they were, and the first one's are those of the whole.

    Args:
        order: labels as they are to stand, so that the directory does not depend on which joined first.

    Returns:
        The labels that were added.

    Raises:
        MemprobeError: the two were probed otherwise, hold other weights under one label, or cannot be written.
    """
    coming = read_run(part)
    added = []
    wanted = coming | {"tables": {}, "checkpoints": {}, "tokens": {}}
    with locked(into):
        if (into / RUN).exists() and (there := read_run(into)["intrusions"]).keys() == wanted[
            "intrusions"
        ].keys():
            wanted["intrusions"] = there
        run = open_or_start(into, wanted, factoids_from_frame(open_probe(part).factoids))
        for label, entry in coming["checkpoints"].items():
            there = run["checkpoints"].get(label)
            if there is not None and (held := other_checkpoint(there, entry)):
                raise MemprobeError(f"{into}: holds {held} under the label {label!r} than {part}")
            if not entry["complete"] or (there is not None and there["complete"]):
                continue
            for table in entry["tables"]:
                with replacing(table_file(into, label, table)) as file:
                    shutil.copyfile(table_file(part, label, table), file)
            texts, shared = coming["tokens"] | entry.get("tokens", {}), run["tokens"]
            own = {key: text for key, text in texts.items() if shared.setdefault(key, text) != text}
            run["checkpoints"][label] = without_residuals(entry) | {
                "tokens": own,
                "intrusions": coming["intrusions"],
            }
            added.append(label)
        place = {label: number for number, label in enumerate(order)}
        ordered = sorted(run["checkpoints"].items(), key=lambda item: place.get(item[0], len(place)))
        run["checkpoints"] = dict(ordered)
        run["tokens"] = dict(sorted(run["tokens"].items(), key=lambda item: int(item[0])))
        if ordered:
            run["intrusions"] = ordered[0][1].get("intrusions", run["intrusions"])
        write_run(run, into)
        write_summary(into, run, known=part)
    return added
