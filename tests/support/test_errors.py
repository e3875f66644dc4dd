"""Messages quote no token and no password."""

import logging
import warnings

import pytest

from prompt_tuning.cli.processes import set_up_messages
from prompt_tuning.errors import HubError, PromptTuningError, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("401 for hf_AbCdEfGhIjKlMnOpQrStUvWxYz12345678.", "401 for hf_***."),
        ("hf_oauth_eyJhbGciOi.eyJzdWIi.x-y_z", "hf_***"),
        ("{'Authorization': 'Bearer abc.def', 'x': 1}", "{'Authorization': '***', 'x': 1}"),
        ("authorization: Basic QWxhZGRpbg==", "authorization: ***"),
        ("sent Bearer abcdefghijk=", "sent Bearer ***"),
        ("https://hub/x?a=1&token=s3cret&b=2", "https://hub/x?a=1&token=***&b=2"),
        ("https://s3/x?X-Amz-Signature=ab12&X-Amz-Credential=k%2F1", "https://s3/x?X-Amz-Signature=***&X-Amz-Credential=***"),
        ("http://ann:pass@localhost:80/x", "http://***@localhost:80/x"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_not_in_a_message(text, shown, capsys):
    assert str(HubError(text)) == shown
    set_up_messages()
    logging.getLogger("prompt_tuning.hub").warning("it says: %s", text)
    assert capsys.readouterr().err == f"it says: {shown}\n"


def test_no_library_sends_control_characters_to_the_terminal(capsys):
    set_up_messages()
    handler = logging.StreamHandler()
    logger = logging.getLogger("transformers.utils.loading_report")
    logger.addHandler(handler)
    logger.warning("\x1b[1mReport\x1b[0m of %s", "a\x1b]0;b\x07")
    logger.removeHandler(handler)
    assert "Report of a\\x1b]0;b\\x07\n" in capsys.readouterr().err
    assert warnings.formatwarning(UserWarning("a\x1b]0;b"), UserWarning, "file.py", 1).endswith("a\\x1b]0;b\n")


@pytest.mark.parametrize(
    "text",
    ["hf_models/llama: no such folder", "ann/squad@main", "https://hub/ann/squad@v1", "HF_TOKEN", "a key=value"],
)
def test_names_are_kept(text):
    assert without_secrets(text) == text


def test_every_error_of_the_package_takes_the_words_of_its_base():
    classes = [PromptTuningError]
    for error in classes:
        classes += error.__subclasses__()
    assert len(classes) > 10 and all(error.__init__ is PromptTuningError.__init__ for error in classes)
