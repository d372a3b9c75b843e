"""Which function a line is in: the shapes that upstream's code has."""

import pytest

from tasks.patches.scopes import DEEPEST, Scopes, Unreadable

CODE = """\
#include "x.h"
namespace autoparser {
static const std::map<std::string, int> names = {
    { "a", 1 },
    { "b}", '{' },
};
enum class kind : int { one, two };
template <typename T>
struct holder final : public base<T> {
    int size { 0 };
    holder(int n) : size{n}, other(n) {
        go();
    }
    bool operator()(int a) const { return a; }
    ~holder() override;
};
}  // namespace autoparser
LLAMA_ATTRIBUTE_FORMAT(1, 2)
static void log_it(const char * format, ...) {
    const char * raw = R"(a { brace " in a raw string)";
}
// void commented() {
/* void out() { */
#if defined(_WIN32)
int twice(int a) {
#else
int twice(long a) {
#endif
    return twice_a;
}
json & server_routes::at(const json & body) const noexcept {
    auto post = [this](const req & r) -> res {
        return handle(r, [&](int x) { return x; });
    };
    this->get_health = [this](const req &) {
        return ok();
    };
    for (int i = 0; i < 3; i++) {
        run({1, 2, 3});
    }
    return body;
}
static int last(void)
{
    return 1'000'000;
}
"""


def name_at(text: str) -> str:
    line = next(n for n, content in enumerate(CODE.split("\n"), 1) if text in content)
    scope = Scopes("x.cpp", CODE).at(line)
    return scope.name if scope else ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("#include", ""),
        ("{ \"b}\", '{' }", "names"),
        ("enum class", "kind"),
        ("int size { 0 }", "holder"),
        ("template <typename T>", "holder"),
        ("go();", "holder::holder"),
        ("operator()", "holder::operator()"),
        ("~holder()", "holder"),
        ("LLAMA_ATTRIBUTE_FORMAT", "log_it"),
        ("raw string", "log_it"),
        ("commented", ""),
        ("twice_a", "twice"),
        ("handle(r", "server_routes::at/post"),
        ("return ok()", "server_routes::at/this->get_health"),
        ("run({1, 2, 3})", "server_routes::at"),
        ("return body", "server_routes::at"),
        ("1'000'000", "last"),
    ],
)
def test_a_line_is_in_its_innermost_named_scope(text: str, name: str) -> None:
    assert name_at(text) == name


def test_overloads_share_a_name_and_differ_by_signature() -> None:
    found = Scopes("x.cpp", "int f(int a) {\n}\nint f(long a) {\n}\n")
    assert found.twice == {"f"}
    assert [scope.signature for scope in found.named("f")] == ["intf(inta)", "intf(longa)"]


@pytest.mark.parametrize("text", ["void f() {\n", "void f() { } }\n"])
def test_braces_that_do_not_close_prove_nothing(text: str) -> None:
    with pytest.raises(Unreadable):
        Scopes("x.cpp", text)


def test_what_is_no_source_has_no_scopes() -> None:
    assert Scopes("x.jinja", "{{ { }").found == []


@pytest.mark.parametrize(
    "after",
    [
        "", " const", " const &", "&&", " noexcept(noexcept(f(1))) override", " final", " try",
        " XXH_FORCE_INLINE A B_1", " __attribute__((unused))", " NONNULL(1) COLD", " const -> std::vector<int>",
        " noexcept : a(1), b(2)", " requires A<T>", " A(1) B(2) -> int",
    ],
)  # fmt: skip
def test_what_may_stand_between_a_head_and_its_brace(after: str) -> None:
    assert [scope.name for scope in Scopes("x.cpp", f"int f(int a){after} {{\n}}\n").found] == ["f"]


@pytest.mark.parametrize("after", [" a", " = 1", " Const", " A b", " ::x", " + A(1) b"])
def test_what_is_no_head(after: str) -> None:
    assert Scopes("x.cpp", f"int f(int a){after} {{\n}}\n").found == []


def test_braces_deeper_than_a_compiler_takes_are_not_read() -> None:
    assert Scopes("x.cpp", "{" * DEEPEST + "}" * DEEPEST).found == []
    with pytest.raises(Unreadable, match=f"line 1 opens a brace within {DEEPEST} others"):
        Scopes("x.cpp", "{" * (DEEPEST + 1) + "}" * (DEEPEST + 1))
