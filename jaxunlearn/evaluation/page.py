"""Files of a report, written so that they are there completely or not at all."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jaxunlearn.evaluation.samples import marked
from jaxunlearn.writing import write_text


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
    write_text(path, environment.get_template("page.html").render(content))


def _sha256(text: str) -> str:
    """As a content security policy names the one script that may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
