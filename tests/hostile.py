"""What somebody would write who wants to be more than text: in a commit subject, a release note, a model's answer."""

from __future__ import annotations

from hypothesis import strategies as st

FORGED = "b99999 answers, approved by nobody"
"""What must not become a line, a row, a heading or a link of its own."""

ALPHABET = (
    "[/red]", "[/]", "[bold red]x[/]", "[link=https://evil.invalid]x[/link]", ":skull:",  # rich
    "\x1b[2J\x1b[1A\x1b[31m", "\x1b]0;owned\x07", "\x1b]8;;https://evil.invalid\x1b\\x\x1b]8;;\x1b\\", "\x1bc",
    "\x9b2J", "\x9d0;owned\x9c", "\x85", "\x7f", "\x00", "\x08\x08", "\r", "\x0b", "\x0c",  # a terminal
    "\u202e", "\u2066", "\u200f", "\u200b", "\ufeff", "\U000e0041", "\u2028", "\u2029",  # the eye
    f"\n{FORGED}", f"\r\n{FORGED}", f"\n\n{FORGED}",
    "[x](https://evil.invalid)", "![x](https://evil.invalid/x.png)", "[x][r]", "\n\n[r]: https://evil.invalid\n\n",
    f"# {FORGED}", f"\n# {FORGED}", "\n===\n", "\n---\n", "\n***\n", f"\n- {FORGED}", f"\n1. {FORGED}", "> x",
    f"\n\n    {FORGED}", "\n```\n", "```mermaid", "~~~", "`", "``", "`x`", "*b*", "**b**", "_i_", "__b__", "~~s~~",
    "|", "\\|", "\\", f"\n| {FORGED} | passed |", f"\n\n| a | b |\n| --- | --- |\n| {FORGED} | passed |\n",
    "https://evil.invalid", "HTTP://evil.invalid/a|b", "www.evil.invalid", "mailto:a@evil.invalid", "a@evil.invalid",
    "<https://evil.invalid>", "&#91;x&#93;", "&lt;", "&amp;", "[^1]", "- [ ] x", "$x$",  # Markdown
    "<!channel>", "<@U123>", "<https://evil.invalid|x>", "@here", "#general", "&", ":fire:",  # Slack
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", f"<h1>{FORGED}</h1>", "</details>", "</td></tr>",
    "<!--", "]]>", '" onload="alert(1)', "' onload='alert(1)", "{{ 7 * 7 }}", "javascript:alert(1)",  # a web page
    "x", " ", "n_ctx", "--no-mmap", "+0.4 points [-1.1, +1.9]", "a\tb", "é", "日本語",
)  # fmt: skip

texts = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=6).map("".join)
"""Pieces of the alphabet, side by side: one may finish what another began."""


def obeyed(said: str) -> list[str]:
    """The characters of what was shown that are not to be seen, but for line breaks and tabs."""
    return sorted({repr(c) for c in said if c not in "\n\t" and not c.isprintable()})
