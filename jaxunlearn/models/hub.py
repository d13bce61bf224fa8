"""Where a model lies: a local folder, or a Hugging Face Hub id that is fetched into the cache."""

import os
import re
from pathlib import Path

from jaxunlearn.errors import UserError

_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w.-]*))?", re.ASCII)
# Weights, configs and tokenizers: no pickles and no code.
_WEIGHTS = "*.safetensors"
_WANTED = [
    _WEIGHTS, "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt",
]  # fmt: skip
# Mistral ships its weights a second time as consolidated*.
_UNWANTED = ["*/*", "consolidated*"]


def model_folder(path: str | Path, *, weights: bool = True) -> Path:
    """The local folder of a model, downloaded into the Hub's cache if need be; without `weights`
    only its small files are.

    A folder that exists is returned as it is, whatever its name. Any other `org/name` or
    `org/name@revision` is a Hub id. The cache, offline mode and token are those of huggingface_hub:
    HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN. What is cached is used when the Hub cannot be
    asked.

    Raises:
      UserError: neither a folder nor an id, or the Hub did not give it; says why.
    """
    folder = os.path.expanduser(path)
    if not str(folder).strip():
        raise UserError("the model's path is empty: no such folder; give one, or a Hub id")
    if os.path.isdir(folder):
        return Path(folder)
    if os.path.exists(folder):
        raise UserError(_one_line(f"{path}: is a file; give the model folder it lies in"))
    found = hub_id(path)
    if found is None:
        raise UserError(
            _one_line(
                f"{path}: no such folder; give the path of a Hugging Face model folder, or a Hub "
                "id such as org/name or org/name@revision"
            )
        )
    try:
        return Path(_download(*found, weights))
    except Exception as error:  # network, disk or Hub: the library has no common class for them
        fault = _explain(error, *found)
        raise UserError(_one_line(f"{path}: no such folder, and {fault}")) from error


def hub_id(path: str | Path) -> tuple[str, str | None] | None:
    """Repository and revision if `path` is a Hub id; None for a local folder and all other text."""
    match = _ID.fullmatch(str(path))
    return None if match is None or os.path.isdir(path) else (match[1], match[2])


def _download(repo: str, revision: str | None, weights: bool) -> str:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    what = {
        "repo_id": repo,
        "revision": revision,
        "allow_patterns": _WANTED if weights else [name for name in _WANTED if name != _WEIGHTS],
        "ignore_patterns": _UNWANTED,
    }
    try:
        # snapshot_download asks without a timeout: behind a silent firewall it hangs for minutes.
        HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except RevisionNotFoundError:
        raise
    except Exception as error:
        try:
            return snapshot_download(**what, local_files_only=True)
        except LocalEntryNotFoundError:
            raise error from None
    return snapshot_download(**what)


def _explain(error: Exception, repo: str, revision: str | None) -> str:
    """What went wrong at the Hub, and how to mend it."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    cached = f"the cache {constants.HF_HUB_CACHE} has no complete copy of {repo}"
    command = f"hf download {repo}"
    if revision is not None:
        cached, command = f"{cached} at {revision}", f"{command} --revision {revision}"
    if isinstance(error, errors.HFValidationError):
        return f"it is no Hub id either: {error}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"offline {cached}; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or run "
            f"`{command}` on a connected machine and copy the cache from there"
        )
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated on the Hub; accept its licence at {page} and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no model {repo} at {constants.ENDPOINT} that you may read; check the spelling, or "
            "set HF_TOKEN if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision}; {page}/commits lists branches and commits"
    return (
        f"{constants.ENDPOINT} did not give it ({type(error).__name__}: {error}), and {cached}; "
        f"check the network and HF_TOKEN, or run `{command}` on a connected machine and copy the "
        "cache from there"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
