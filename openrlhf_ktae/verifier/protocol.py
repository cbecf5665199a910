"""Length-prefixed JSON over a pipe: 4 bytes big-endian length, then ASCII JSON (lone surrogates survive)."""

import json
import struct
from typing import Any

HEADER = struct.Struct(">I")
MAX_MESSAGE = 1 << 24  # bytes; a longer length means that the stream is corrupt


def encode(message: dict[str, Any]) -> bytes:
    """Return one message as bytes."""
    body = json.dumps(message, ensure_ascii=True).encode("ascii")
    return HEADER.pack(len(body)) + body


def decode_from(buffer: bytearray) -> dict[str, Any] | None:
    """Remove and return the first message in `buffer`; None if it is incomplete. Raises ValueError if corrupt."""
    if len(buffer) < HEADER.size:
        return None
    (length,) = HEADER.unpack_from(buffer)
    if length > MAX_MESSAGE:
        raise ValueError(f"message of {length} bytes")
    end = HEADER.size + length
    if len(buffer) < end:
        return None
    message = json.loads(bytes(buffer[HEADER.size : end]))
    del buffer[:end]
    if not isinstance(message, dict):
        raise ValueError("message is not an object")
    return message
