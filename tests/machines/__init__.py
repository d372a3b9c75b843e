"""Machines that are not like the one that this is written on; run by hand, from the root of a checkout, as root.

    python -m tests.machines debian13 FOLDER [WHAT ...]    a Debian 13 that has what README names, and no more
    python -m tests.machines plain FOLDER [WHAT ...]       one who is not root, a path with a space, LANG=C, umask 077

WHAT is `venv`, `demo` or `test` (targets of make; by default `demo` and `test`), done in a fresh clone of the commit
that is checked out here. FOLDER keeps what was bootstrapped. It exits 1 when one of them failed.
"""
