"""Check within seconds whether a model or data set is on the Hugging Face Hub or in its local cache."""

import os
import threading
from functools import cache
from pathlib import Path

SECONDS = 3  # for one query; after a timeout the Hub is not queried again
KINDS = {"model": "model", "dataset": "data set"}
_silent = threading.Event()


def missing(name: str, kind: str = "model") -> str:
    """Return why `name` cannot be loaded; empty if no reason is known."""
    if any(os.path.isdir(folder) for folder in cached_folders(name, kind)):
        return ""
    answer = _there(name, kind)
    if answer is None:
        return f"not in the local cache, and {_reason_for_silence()}"
    return "" if answer else f"no such {KINDS[kind]} on the Hugging Face Hub or in its local cache"


def _reason_for_silence() -> str:
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    return "HF_HUB_OFFLINE is set" if offline else f"the Hugging Face Hub could not be reached within {SECONDS} s"


def cached_folders(name: str, kind: str) -> list[Path]:
    """Return the cache folders of `name`: the Hub download, and the one prepared by `datasets`."""
    from huggingface_hub import constants

    folders = [Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"]
    if kind == "dataset":
        folders.append(Path(constants.HF_HOME) / "datasets" / name.replace("/", "___"))
    return folders


@cache
def _there(name: str, kind: str) -> bool | None:
    """Return whether the Hub has `name`; None if it does not answer. A thread, because DNS lookup ignores timeouts."""
    if _silent.is_set():
        return None
    answers: list[bool | None] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(name, kind)), daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not answers or answers[0] is None:
        _silent.set()
        return None
    return answers[0]


def _ask(name: str, kind: str) -> bool | None:
    from huggingface_hub import repo_exists
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return repo_exists(name, repo_type=kind)
    except HfHubHTTPError as error:
        return error.response.status_code in (401, 403)  # gated: let the host's loader say so
    except HFValidationError:  # no repository can have this name
        return False
    except Exception:  # offline; each HTTP library raises its own types
        return None
