"""CRIU's image files: made smaller, and checked. Standard library only.

Pages that hold nothing but zeros are left out of a dump. Most of a fresh KV cache is zeros that llama-server wrote,
so CRIU keeps them, reads them back and touches their pages. A private anonymous page that is in no image comes back
as zeros anyway; so the files get smaller, and a restore faster, by what no one has used yet. Pages that shadow a file
must stay: left out, the file's would show.

The format is CRIU's own (images/*.proto in its source): two magic numbers, then protobuf messages, each behind its
length in 32 bits. `pagemap-<pid>.img` says at which address each run of pages in `pages-<id>.img` belongs.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PAGE = 4096
BLOCK = 16 * PAGE
"""Left out as a whole or not at all, so that the pages do not fall into too many runs."""
STEP = 256 * PAGE
CHUNK_BYTES = 4 << 20

_VMAS, _START, _END, _STATUS = 14, 1, 2, 7  # of mm_entry, vma_entry
_PAGES_ID, _ADDRESS, _IN_PARENT, _FLAGS, _PAGES = 1, 1, 3, 4, 5  # of pagemap_head, pagemap_entry
_ANONYMOUS, _VDSO, _VVAR = 1 << 9, 1 << 3, 1 << 12  # of vma_entry.status
_PARENT, _PRESENT = 1 << 0, 1 << 2  # of pagemap_entry.flags
_ZEROS = bytes(STEP)


def leave_out_zeros(images: Path) -> None:
    """Rewrite the pages of a dump without those that come back as zeros, in place: it needs no further space.

    Raises ValueError or LookupError for images of another format.
    """
    for memory in images.glob("mm-*.img"):
        _, (process, *_) = _read(memory)
        areas = [_numbers(area) for number, area in _fields(process) if number == _VMAS and isinstance(area, bytes)]
        anonymous = [
            range(area[_START], area[_END])
            for area in areas
            if area[_STATUS] & _ANONYMOUS and not area[_STATUS] & (_VDSO | _VVAR)
        ]
        _shrink(images / memory.name.replace("mm-", "pagemap-"), anonymous)


def _shrink(pagemap: Path, anonymous: list[range]) -> None:
    magic, (head, *messages) = _read(pagemap)
    entries = [_numbers(message) for message in messages]
    for entry in entries:
        if entry.get(_IN_PARENT) or entry[_FLAGS] & (_PARENT | _PRESENT) != _PRESENT:
            raise ValueError(f"{pagemap.name} has pages that are not in this dump")
    kept = [head]
    at = end = 0
    with open(pagemap.with_name(f"pages-{_numbers(head)[_PAGES_ID]}.img"), "r+b") as pages:
        for entry in entries:
            runs: list[list[int]] = []
            for offset in range(0, entry[_PAGES] * PAGE, STEP):
                pages.seek(at + offset)
                data = pages.read(min(STEP, entry[_PAGES] * PAGE - offset))
                address = entry[_ADDRESS] + offset
                blocks = [
                    (address + i, data[i : i + BLOCK])
                    for i in range(0, len(data), BLOCK)
                    if not _comes_back(data, i, address, anonymous)
                ]
                pages.seek(end)
                for start, block in blocks:
                    end += pages.write(block)
                    if runs and sum(runs[-1]) == start:
                        runs[-1][1] += len(block)
                    else:
                        runs.append([start, len(block)])
            at += entry[_PAGES] * PAGE
            kept += [_entry(start, size // PAGE, entry[_FLAGS]) for start, size in runs]
        pages.truncate(end)
    pagemap.write_bytes(magic + b"".join(len(message).to_bytes(4, "little") + message for message in kept))


def _comes_back(data: bytes, at: int, address: int, anonymous: list[range]) -> bool:
    """Whether a block is all zeros in memory that is zeros until it is written to."""
    size = min(BLOCK, len(data) - at)
    first, last = address + at, address + at + size - 1
    return data.startswith(_ZEROS[:size], at) and any(first in area and last in area for area in anonymous)


def checksums(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Path in the folder -> size and CRC-32 of each 4 MiB, on all cores but the one that restores. Raises OSError.

    This finds damage, not forgery: whoever can write here can write the manifest, too. And it is read before every
    restore, three times as fast as sha256.
    """
    sizes = {path: path.stat().st_size for path in paths}
    chunks = [(path, at) for path, size in sizes.items() for at in range(0, size, CHUNK_BYTES)]
    found = {path: [str(size)] for path, size in sizes.items()}
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1)) as pool:
        for (path, _), sum in zip(chunks, pool.map(lambda chunk: _checksum(*chunk), chunks), strict=True):
            found[path].append(sum)
    return {str(path.relative_to(folder)): " ".join(sums) for path, sums in found.items()}


def _checksum(path: Path, at: int) -> str:
    with open(path, "rb", buffering=0) as file:
        file.seek(at)
        return f"{zlib.crc32(file.read(CHUNK_BYTES)):08x}"


# -- protobuf -----------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[bytes, list[bytes]]:
    """The magic numbers and the messages of an image file."""
    data = path.read_bytes()
    at, messages = 8, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        messages.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return data[:8], messages


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message: integers, and bytes for what is nested."""
    at = 0

    def integer() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        number, kind = divmod(integer(), 8)
        if kind == 0:
            yield number, integer()
        elif kind == 2:
            size = integer()
            yield number, message[at : at + size]
            at += size
        else:
            raise ValueError(f"field {number} is of kind {kind}")


def _numbers(message: bytes) -> dict[int, int]:
    """The fields of a message that are integers."""
    return {number: value for number, value in _fields(message) if isinstance(value, int)}


def _entry(address: int, pages: int, flags: int) -> bytes:
    fields = ((_ADDRESS, address), (2, 0), (_FLAGS, flags), (_PAGES, pages))  # 2: the number of pages, once
    return b"".join(bytes([number << 3]) + _integer(value) for number, value in fields)


def _integer(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
