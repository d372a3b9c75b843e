"""What counts as a secret, and texts without it."""

from __future__ import annotations

import pytest

from modal_app import redaction
from modal_app.redaction import harmless, is_secret, redact, redacted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLAMA_RELEASE_API_KEY", "abcdef"), ("GITHUB_TOKEN", "ghp_abcdef"), ("MODAL_TOKEN_ID", "ak-123456"),
        ("MODAL_TOKEN_SECRET", "as-123456"), ("PREFECT_API_AUTH_STRING", "ada:lovelace"), ("PGPASSWORD", "lovelace"),
        ("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://ada:lovelace@db/prefect"),
        ("https_proxy", "http://ada:lovelace@proxy:3128"), ("SLACK_WEBHOOK", "https://hooks.invalid/x"),
    ],
)  # fmt: skip
def test_a_variable_is_secret_by_its_name_or_by_the_credentials_in_its_value(name: str, value: str) -> None:
    assert is_secret(name, value)
    assert name not in harmless({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLAMA_RELEASE_SERVER__API_KEY_ENV", "MY_KEY"), ("SSH_KEY", "/home/ada/.ssh/id"), ("DEBUG_TOKEN", "1"),
        ("LLAMA_RELEASE_EVALS__PRICE_PER_MILLION_TOKENS", "1000000"), ("PREFECT_API_URL", "http://127.0.0.1:4200/api"),
        ("TOKENIZERS_PARALLELISM", "false"), ("KEYBOARD", "querty"), ("PATH", "/usr/bin:/bin"),
    ],
)  # fmt: skip
def test_paths_names_numbers_and_plain_addresses_are_no_secrets(name: str, value: str) -> None:
    assert not is_secret(name, value)


def test_a_secret_goes_wherever_it_stands_and_its_variable_is_named_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_1234")
    monkeypatch.setenv("LONGER_TOKEN", "ghp_1234567890")
    monkeypatch.setenv("DATABASE_URL", "postgresql://ada:love%2Flace@db/prefect")
    found = redact({"ghp_1234": ["a ghp_1234567890 b", 7, None, ("love%2Flace", "love/lace")]})
    assert found == {"[GITHUB_TOKEN]": ["a [LONGER_TOKEN] b", 7, None, ["[DATABASE_URL]", "[DATABASE_URL]"]]}
    assert redact("this server's own", "own") == "this server's [key]"


def test_credentials_in_any_address_are_hidden_whoever_set_them() -> None:
    assert redact("GET https://ada:lovelace@ghe.invalid/api?page=2 failed") == (
        "GET https://[hidden]@ghe.invalid/api?page=2 failed"
    )
    assert redact("https://x.invalid/f?access_token=abc&n=1") == "https://x.invalid/f?access_token=[hidden]&n=1"
    plain = "see https://github.com/ggml-org/llama.cpp/pull/7?w=1#note, git@github.com:x and ada@b.invalid"
    assert redact(plain) == plain


def test_a_variable_that_the_settings_name_is_secret_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_named", set())
    monkeypatch.setenv("OUR_SERVERS_WORD", "open sesame")
    assert redact("say open sesame") == "say open sesame"
    redaction.also("OUR_SERVERS_WORD")
    assert redact("say open sesame") == "say [OUR_SERVERS_WORD]"


def test_an_argv_for_a_log_has_no_secret() -> None:
    argv = ["x", "--api-key", "s3cret", "--hf-token=s3cret", "--port", "1"]
    assert redacted(argv) == "x --api-key *** --hf-token=*** --port 1"
