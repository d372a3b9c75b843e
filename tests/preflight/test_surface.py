"""What is read from real excerpts of --help, README and server source."""

from __future__ import annotations

from tasks.flags.flag import Flag, flags_of_help, flags_of_readme
from tasks.preflight.surface import disagreements, fields_of, routes_of
from tests.preflight.conftest import excerpt


def flag(tag: str, name: str) -> Flag:
    return next(each for each in flags_of_help(excerpt(tag, "help.txt")) if name in each.names)


def test_a_flag_has_its_names_value_variable_and_default() -> None:
    timeout = flag("b8672", "--timeout")
    assert timeout.names == ("-to", "--timeout")
    assert (timeout.value, timeout.env, timeout.default) == ("N", "LLAMA_ARG_TIMEOUT", "600")
    assert timeout.text == "server read/write timeout in seconds (default)"


def test_a_value_with_commas_and_spaces_is_no_name() -> None:
    assert flag("b11434", "-otd").value == "<tensor name pattern>=<buffer type>,..."
    assert flag("b11434", "-fa").value == "[on|off|auto]"
    assert flag("b11434", "-fa").default == "'auto'"


def test_a_switch_with_a_negative_name_is_set_by_two_variables() -> None:
    assert flag("b8672", "--no-mmap").variables == ("LLAMA_ARG_MMAP", "LLAMA_ARG_NO_MMAP")
    assert flag("b8672", "--mlock").variables == ("LLAMA_ARG_MLOCK",)


def test_a_flag_that_is_only_listed_as_gone_is_known_as_removed() -> None:
    assert not flag("b8672", "--draft-max").removed
    assert flag("b11434", "--draft-max").removed


def test_the_readme_tells_the_same_as_the_help_and_where_it_does_not_it_is_said() -> None:
    listed, text = flags_of_help(excerpt("b11434", "help.txt")), excerpt("b11434", "README.md")
    assert disagreements(listed, flags_of_readme(text)) == ()
    other = text.replace("(default: 3600)", "(default: 600)").replace("`--metrics`", "`--measures`")
    assert disagreements(listed, flags_of_readme(other)) == (
        "--measures: in the README only",
        "--timeout: default 3600 in --help, 600 in the README",
        "--metrics: not in the README",
    )


def test_routes_are_read_with_method_and_handler_and_a_forbidden_one_is_none() -> None:
    old = {str(r): r.handler for r in routes_of(excerpt("b8672", "server.cpp"))}
    assert old["POST /models/unload"] == "post_router_models_unload"
    assert old["GET /api/tags"] == old["GET /v1/models"] == "get_models"
    assert "POST /slots/:id_slot" in old
    new = {str(r) for r in routes_of(excerpt("b11434", "server.cpp"))}
    assert "DELETE /models" in new
    assert "GET /tools" not in new


def test_fields_are_read_from_json_values_and_from_the_schema_but_not_from_comments() -> None:
    old, new = (fields_of(excerpt(tag, "server.cpp")) for tag in ("b8672", "b11434"))
    assert {"n_predict", "max_completion_tokens", "json_schema", "grammar", "messages"} <= set(old)
    assert {"n_predict", "max_completion_tokens", "max_tokens", "json_schema", "grammar", "messages"} <= set(new)
    assert "t_max_prompt_ms" not in {*old, *new}
