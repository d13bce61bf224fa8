"""Files of a report, written so that they are there completely or not at all."""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from jaxunlearn.evaluation.samples import marked


def write_page(path: Path, content: dict[str, Any]) -> None:
    """Renders page.html. Everything goes through the template, which escapes it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sha256"] = _sha256
    environment.globals["marked"] = marked
    write_file(path, environment.get_template("page.html").render(content))


def write_file(path: Path, text: str) -> None:
    """Writes a text file atomically; its folder must exist."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(text: str) -> str:
    """As a content security policy names the one script that may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
