"""Make a language model forget, and prove that it did.

    >>> import jaxunlearn as ju                                                  # doctest: +SKIP
    >>> model = ju.load("my-model")                                              # doctest: +SKIP
    >>> result = ju.unlearn(model, forget="forget.jsonl", retain="retain.jsonl", method="npo")
    ...                                                                          # doctest: +SKIP
    >>> result.export("my-model-unlearned")                                      # doctest: +SKIP

Heavy packages are imported when they are used: this import alone is quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "load": "jaxunlearn.api",
    "unlearn": "jaxunlearn.api",
    "evaluate": "jaxunlearn.api",
    "Result": "jaxunlearn.api",
    "method": "jaxunlearn.methods.registry",
    "LanguageModel": "jaxunlearn.models.language_model",
    "Row": "jaxunlearn.data.rows",
    "UserError": "jaxunlearn.errors",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'jaxunlearn' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
