"""The one way to the Hub: the client, who is asking, and what its errors mean in words a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mopeq_hub.errors import MopeqError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKEN_ADVICE = "create a token with write access in your account's settings and set HF_TOKEN, or run `hf auth login`"


def api() -> "HfApi":
    """The client; endpoint and token come from the environment (HF_ENDPOINT, HF_TOKEN) or the saved login."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, logging

    # Progress and trouble are told in one way, ours; a pipe or `--json` gets none of the client's.
    disable_progress_bars()
    logging.set_verbosity_error()
    return HfApi(library_name="mopeq-hub")


def has_token() -> bool:
    """Whether a token is set or saved."""
    from huggingface_hub import get_token

    return get_token() is not None


def account() -> str:
    """The name of the account the token belongs to. Raises MopeqError where there is none."""
    with hub_errors("the account of this token"):
        return str(api().whoami()["name"])


def check_write_access(repo_id: str) -> str:
    """The account that will write to `repo_id`.

    Raises MopeqError unless the token may, as far as the Hub tells before a write is tried.
    """
    if not has_token():
        raise MopeqError(f"pushing to {repo_id} needs a token and none is set", TOKEN_ADVICE)
    with hub_errors(repo_id):
        who = api().whoami()
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise MopeqError(
            f"the token set for {who['name']} can only read, so nothing can be pushed to {repo_id}", TOKEN_ADVICE
        )
    owner = repo_id.split("/")[0]
    owners = {who["name"], *(organization["name"] for organization in who.get("orgs", []))}
    if owner not in owners:
        raise MopeqError(
            f"{who['name']} may not write to {repo_id}: {owner} is neither this account nor one of its organizations",
            f"choose --to {who['name']}/... or use another token",
        )
    return str(who["name"])


@contextmanager
def hub_errors(where: str) -> Iterator[None]:
    """Turn the client's errors into MopeqError. `where` names the repo or file being asked for; no token is ever
    shown."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise MopeqError(f"{where} is gated", "accept its terms on its page and use a token of that account") from None
    except errors.RepositoryNotFoundError:
        raise MopeqError(
            f"{where} does not exist, or is private", "check the name, or set HF_TOKEN for an account that sees it"
        ) from None
    except errors.RevisionNotFoundError:
        raise MopeqError(f"{where} has no such revision", "name a branch, tag or commit that exists") from None
    except errors.HFValidationError as error:
        raise MopeqError(f"{where} is not a valid repo name: {error}", "write it as owner/name") from None
    except errors.OfflineModeIsEnabled:
        raise MopeqError(f"{where} cannot be reached: HF_HUB_OFFLINE is set", "unset it, or name a folder") from None
    except errors.LocalEntryNotFoundError:
        raise MopeqError(
            f"{where} cannot be reached and is not in the local cache", "check the network and try again"
        ) from None
    except errors.EntryNotFoundError:
        raise MopeqError(f"{where} does not exist", "check the name and the revision") from None
    except errors.HfHubHTTPError as error:
        raise _refused(where, error) from None
    except httpx2.HTTPError as error:
        raise MopeqError(
            f"{where} cannot be reached: {type(error).__name__}", "check the network and try again"
        ) from None


def _refused(where: str, error: Exception) -> MopeqError:
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else None
    reason = getattr(error, "server_message", None) or f"status {status}"
    advice = {
        401: TOKEN_ADVICE,
        402: "free some storage or change the plan of the account",
        403: TOKEN_ADVICE,
        412: "somebody else changed the repo meanwhile; run the same command again",
        429: "wait some minutes and run the same command again",
    }
    return MopeqError(f"the Hub refused {where}: {reason}", advice.get(status or 0, "try again later"))
