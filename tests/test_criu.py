"""CRIU's images made smaller and checked; which CRIU is used, and what it says of a failure."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tasks import criu
from tasks.criu_images import BLOCK, PAGE, _entry, _integer, _numbers, checksums, leave_out_zeros

BASE = 0x7F0000000000


def _field(number: int, value: int) -> bytes:
    return bytes([number << 3]) + _integer(value)


def _nested(number: int, message: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _integer(len(message)) + message


def _image(path: Path, *messages: bytes) -> None:
    path.write_bytes(b"magicnum" + b"".join(struct.pack("<I", len(m)) + m for m in messages))


def dumped(folder: Path, areas: list[tuple[int, int]], entries: list[tuple[int, int, int]], pages: bytes) -> Path:
    """Images of one process: areas (pages, status), pagemap entries (first page, pages, flags), their content."""
    at, vmas = BASE, b""
    for count, status in areas:
        vma = _field(1, at) + _field(2, at + count * PAGE) + _field(7, status)
        vmas += _nested(14, vma)
        at += count * PAGE
    _image(folder / "mm-7.img", _field(1, 1) + vmas)
    _image(folder / "pagemap-7.img", _field(1, 3), *(_entry(BASE + f * PAGE, n, flags) for f, n, flags in entries))
    (folder / "pages-3.img").write_bytes(pages)
    return folder


def left(folder: Path) -> dict[int, bytes]:
    """Number of a page -> its content, of every page that is still there."""
    data = (folder / "pagemap-7.img").read_bytes()
    pages = (folder / "pages-3.img").read_bytes()
    found, at, n = {}, 0, 8
    while n < len(data):
        (size,) = struct.unpack_from("<I", data, n)
        message = data[n + 4 : n + 4 + size]
        n += 4 + size
        if len(message) > 2:
            entry = _numbers(message)
            for i in range(entry[5]):
                found[(entry[1] - BASE) // PAGE + i] = pages[at : at + PAGE]
                at += PAGE
    assert at == len(pages)
    return found


ANONYMOUS, OF_A_FILE = 0x201, 0x41


def test_zeros_of_anonymous_memory_are_left_out_and_all_else_stays_where_it_was(tmp_path: Path) -> None:
    block = BLOCK // PAGE
    content = {n: bytes(PAGE) for n in range(6 * block)} | {2 * block + 3: b"x" * PAGE, 5 * block: b"y" * PAGE}
    images = dumped(
        tmp_path, [(6 * block, ANONYMOUS)], [(0, 6 * block, 6)], b"".join(content[n] for n in range(6 * block))
    )
    leave_out_zeros(images)
    kept = left(images)
    assert sorted(kept) == [*range(2 * block, 3 * block), *range(5 * block, 6 * block)]
    assert all(kept[n] == content[n] for n in kept)


def test_zeros_that_hide_what_a_file_says_stay(tmp_path: Path) -> None:
    block = BLOCK // PAGE
    images = dumped(tmp_path, [(block, OF_A_FILE), (block, ANONYMOUS)], [(0, 2 * block, 4)], bytes(2 * BLOCK))
    leave_out_zeros(images)
    assert sorted(left(images)) == list(range(block))


def test_a_dump_that_leans_on_an_earlier_one_is_not_touched(tmp_path: Path) -> None:
    images = dumped(tmp_path, [(16, ANONYMOUS)], [(0, 16, 1)], bytes(BLOCK))
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(ValueError, match="not in this dump"):
        leave_out_zeros(images)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_checksums_tell_a_flipped_bit_and_a_missing_byte_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "pages-1.img"
    content = bytearray(os.urandom((9 << 20) + 17))
    path.write_bytes(content)
    whole = checksums(tmp_path, [path])
    assert list(whole) == ["pages-1.img"]
    for at in (0, 4 << 20, len(content) - 1):
        content[at] ^= 1
        path.write_bytes(content)
        assert checksums(tmp_path, [path]) != whole
        content[at] ^= 1
    path.write_bytes(content[:-1])
    assert checksums(tmp_path, [path]) != whole


def test_a_name_means_the_installed_criu_and_a_path_means_itself(tmp_path: Path) -> None:
    assert criu.find("/opt/criu", tmp_path) == "/opt/criu"
    assert criu.find("no-such-criu", tmp_path) == "no-such-criu"
    installed = tmp_path / "criu" / "criu"
    installed.parent.mkdir()
    installed.touch()
    assert criu.find("criu", tmp_path) == str(installed)
    assert criu.find("/opt/criu", tmp_path) == "/opt/criu"


def test_criu_s_own_words_are_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "restore.log"
    log.write_text(
        "Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
        " 16054: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 10): Address already in use\n"
        "(00.108) Error (criu/cr-restore.c:2331): Restoring FAILED.\n"
    )
    said = "inet: Can't bind inet socket (id 10): Address already in use; Restoring FAILED."
    assert criu.complaint(log, "exit code 137") == f"{said} (exit code 137)"
    assert criu.complaint(tmp_path / "none", "exit code 1") == "exit code 1"
