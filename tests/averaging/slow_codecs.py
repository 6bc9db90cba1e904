"""Every payload format again, one value at a time in plain Python: the reference of the codecs."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np

HEADER = 8


def decode(name: str, data: bytes, n: int) -> list[float]:
    """The values of a payload, read as the modules' docstrings describe it."""
    if name == "none":
        return list(struct.unpack(f"<{n}f", data))
    version, kind, parameter, count = struct.unpack("<BBHI", data[:HEADER])
    assert (version, count) == (1, n)
    body = data[HEADER:]
    match kind:
        case 1:
            return list(struct.unpack(f"<{n}e", body))
        case 2:
            return [bfloat16(code) for code in struct.unpack(f"<{n}H", body)]
        case 3 | 4:
            return _integers(body, n, parameter, 8 if kind == 3 else 4)
        case 5:
            return _two_bits(body, n, parameter)
        case 6:
            return _top_k(name, body, n, parameter)
    raise AssertionError(kind)


def bfloat16(code: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", code << 16))[0])


def _integers(body: bytes, n: int, block: int, bits: int) -> list[float]:
    blocks = math.ceil(n / block)
    scales = [bfloat16(code) for code in struct.unpack(f"<{blocks}H", body[: 2 * blocks])]
    values = []
    for i in range(n):
        octet = body[2 * blocks + i * bits // 8]
        level = (octet ^ 0x80) - 0x80 if bits == 8 else (octet >> 4 * (i % 2) & 15) - 8
        values.append(max(level, -127 if bits == 8 else -7) * scales[i // block])
    return values


def _two_bits(body: bytes, n: int, block: int) -> list[float]:
    blocks = math.ceil(n / block)
    levels = [bfloat16(code) for code in struct.unpack(f"<{2 * blocks}H", body[: 4 * blocks])]
    values = []
    for i in range(n):
        code = body[4 * blocks + i // 4] >> 2 * (i % 4) & 3
        level = levels[2 * (i // block) + (code & 1)]
        values.append(-level if code & 2 else level)
    return values


def _top_k(name: str, body: bytes, n: int, density: int) -> list[float]:
    counts = [math.ceil(min(4096, n - start) / density) for start in range(0, n, 4096)]
    total = sum(counts)
    packed = int.from_bytes(body[: math.ceil(1.5 * total)], "little")
    inner = decode(name.split("-", 1)[1], body[math.ceil(1.5 * total) :], total)
    values, i = [0.0] * n, 0
    for chunk, count in enumerate(counts):
        for _ in range(count):
            values[4096 * chunk + (packed >> 12 * i & 4095)] = inner[i]
            i += 1
    return values


def blocks(values: np.ndarray, block: int) -> Iterator[np.ndarray]:
    """Pieces of at most `block` values, in float64."""
    for start in range(0, values.size, block):
        yield values[start : start + block].astype(np.float64)


def largest_positions(values: np.ndarray, density: int) -> list[int]:
    """What top-k sends: by magnitude, the lower index first among equals, ascending."""
    chosen = []
    for start in range(0, values.size, 4096):
        chunk = [abs(float(v)) for v in values[start : start + 4096]]
        order = sorted(range(len(chunk)), key=lambda i: (-chunk[i], i))
        chosen += sorted(start + i for i in order[: math.ceil(len(chunk) / density)])
    return chosen
