"""Text files that are there completely or not at all."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
