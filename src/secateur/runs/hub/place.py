"""A repository on the hub: whether one may write there, and what it has; asked before any work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...models.guards import HUB_TIMEOUT_S, one_line
from ...system.errors import InputError, SecateurError

TOKENS = "https://huggingface.co/settings/tokens"
OWN = (".gitattributes",)
"""Files that the hub itself puts into a repository."""


@dataclass(frozen=True)
class Place:
    """A repository that this token may write to."""

    repo: str
    """OWNER/NAME"""
    files: dict[str, str]
    """What it has: path -> SHA-256 of its content (large files), or git's SHA-1 of it as a blob."""
    exists: bool


def hub_api() -> Any:
    """The hub's client, at `HF_ENDPOINT` as it is now."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def check_place(name: str, given: str, *, private: bool) -> Place:
    """Whether there is a token that may write to `name`, and what is there already.

    Args:
        name: OWNER/NAME, or NAME of the token's owner.
        given: the option that it was given with, for messages.
        private: whether the repository is to be private.
    Raises:
        InputError: no token, one that is not accepted or must not write there, another's name, no network.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    place = f"{given} {name}"
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{place}: HF_HUB_OFFLINE is set, and nothing can be sent to the hub: unset it.")
    if get_token() is None:
        raise InputError(f"{place}: no token of the hub's is here: log in with `hf auth login`, or set HF_TOKEN.")
    with told(place):
        found = _who()
        owner = name.split("/")[0] if "/" in name else str(found["name"])
        repo = f"{owner}/{name.split('/')[-1]}"
        _check_right(found, owner, repo, place)
        api = hub_api()
        try:
            info = api.model_info(repo, timeout=HUB_TIMEOUT_S)
        except RepositoryNotFoundError:
            return Place(repo, {}, exists=False)
        if private and info.private is False:
            raise InputError(f"{place} is there and public: make it private on the hub, or leave --private out.")
        return Place(repo, files_of(api, repo), exists=True)


def files_of(api: Any, repo: str) -> dict[str, str]:
    """Path -> digest of every file of a repository, but for what the hub puts there itself."""
    entries = [entry for entry in api.list_repo_tree(repo, recursive=True) if hasattr(entry, "blob_id")]
    return {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in entries if entry.path not in OWN}


def _who() -> dict[str, Any]:
    """Whose token it is. `HfApi.whoami` waits without end where nobody answers."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = f"{hub_api().endpoint}/api/whoami-v2"
    response = get_session().get(url, headers=build_hf_headers(token=True), timeout=HUB_TIMEOUT_S)
    hf_raise_for_status(response)
    found: dict[str, Any] = response.json()
    return found


def _check_right(found: dict[str, Any], owner: str, repo: str, place: str) -> None:
    """Raise where the hub's answer says that this token cannot write to `repo`; where it says nothing, go on."""
    orgs = {str(org.get("name")): org.get("roleInOrg") for org in found.get("orgs") or ()}
    if owner != found["name"] and owner not in orgs:
        raise InputError(
            f"{place}: {owner} is another's name, and this token is of {found['name']}: choose {found['name']}/"
            f"{repo.split('/')[1]}, or an organisation that you are in."
        )
    if orgs.get(owner) == "read":
        raise InputError(f"{place}: in {owner} you may only read: ask its owners for the right to write.")
    token = (found.get("auth") or {}).get("accessToken") or {}
    remedy = f"make a token with the right to write at {TOKENS}, and log in with it (`hf auth login`)."
    if token.get("role") == "read":
        raise InputError(f"{place}: the token may only read: {remedy}")
    if token.get("role") == "fineGrained":
        scopes = (token.get("fineGrained") or {}).get("scoped") or ()
        rights = [
            right
            for scope in scopes
            if (scope.get("entity") or {}).get("name") in (owner, repo)
            for right in scope.get("permissions") or ()
        ]
        if not any(right.startswith("repo") and right.endswith("write") for right in rights):
            raise InputError(f"{place}: the token may not write to repositories of {owner}: {remedy}")


@contextmanager
def told(place: str, kept: str = "") -> Iterator[None]:
    """What the hub, or the way to it, refuses, as one message of ours.

    Args:
        kept: what stands all the same, for the message.
    Raises:
        InputError: in the place of the library's errors, whose classes differ between versions.
    """
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error  # of uploads in threads
        status = getattr(getattr(cause, "response", None), "status_code", None)
        raise InputError(f"{place}: {_reason(cause, status)}{kept}") from error


def _reason(error: Exception, status: int | None) -> str:
    if status == 401:
        return "the hub does not accept the token: log in anew with `hf auth login`, or correct HF_TOKEN."
    if status == 403:
        return f"the hub refuses to let this token write there: make one that may at {TOKENS} ({one_line(error)})."
    if status == 409:
        return "the name is taken: choose another."
    if status == 429:
        return "the hub asks to wait before the next request: try again in some minutes."
    if status is not None:
        return f"the hub answers {status} ({one_line(error)}): try again later."
    if isinstance(error, ValueError) and "README" in str(error):
        return f"the hub does not take the card ({' '.join(str(error).split())[:200]}): correct README.md."
    return f"the hub cannot be reached ({type(error).__name__}: {one_line(error)}): check the network and HF_ENDPOINT."
