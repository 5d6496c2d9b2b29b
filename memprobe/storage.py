"""What processes on several machines share: a folder that all reach, or the URL of a storage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from memprobe.errors import MemprobeError, first_line
from memprobe.probes import parts_dir
from memprobe.records import BY_CHECKPOINT


def stand_in(where: str) -> None:
    """Makes relative paths mean what they mean to the driver, where a node has its folder."""
    if Path(where).is_dir():
        os.chdir(where)


def put_part(folder: str, label: str, place: int, tables: Any) -> str:
    """Writes a part below a folder or URL; see :func:`memprobe.probe_writer.write_part`."""
    from memprobe.probe_writer import write_part

    if "://" not in folder:
        return write_part(parts_dir(Path(folder), label), place, tables)
    import io

    files, root = storage_at(folder)
    name = ""
    for table in BY_CHECKPOINT:
        name = f"{table}-{place:08}.parquet"
        data = io.BytesIO()
        getattr(tables, table).write_parquet(data)
        target = f"{root}/{parts_dir(Path(), label).as_posix()}/{name}"
        files.makedirs(target.rpartition("/")[0], exist_ok=True)
        files.pipe_file(target, data.getvalue())
    return name


def storage_at(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        MemprobeError: no such protocol, or what it needs is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise MemprobeError(f"--storage {url}: {first_line(error)}") from error
    return files, root.rstrip("/")
