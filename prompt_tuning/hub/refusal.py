"""Explain the refusals of the hub."""

from __future__ import annotations

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from prompt_tuning.errors import first_line


def explain_refusal(error: HfHubHTTPError, repo_id: str) -> str:
    """Return why the hub refused a request for a repository, and what to do about it; the token is not in it."""
    status = error.response.status_code
    hub = constants.ENDPOINT
    if status == 401 and get_token() is None:
        return f"{hub} needs a login. Log in with `hf auth login`, or set HF_TOKEN."
    if status == 401:
        return f"{hub} does not accept the token (HF_TOKEN, or that of `hf auth login`). Log in with a valid one."
    if status == 403:
        return (
            f"this token may not write to {repo_id}: it belongs to another user, or the token may only read. Name a "
            "repository of your own (`hf auth whoami` prints your name), or log in with a token that may write."
        )
    if status in (409, 412):
        return "another user changed it at the same time, and nothing was overwritten. Run the same command again."
    if status == 429 or status >= 500:
        return f"{hub} answers {status}, and nothing was changed. Wait, and run the same command again."
    return f"{hub} answers {status}: {first_line(error.server_message or error)}"
