"""Ways to damage signed documents: bytes, JSON, base64, protobuf fields, and pieces of other documents put together."""

import base64
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

MAX_BYTES = 1 << 16
_INTERESTING = (0, 1, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_TOKENS = (b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\u0000", b"null", b"NaN", b"1e999", b"-0", b"\xff\xfe", b"\x00")

Mutator = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def flip_bits(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One to four bits."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A few bytes become random ones."""
    at, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 64))
    return data[:at] + rng.randbytes(size) + data[at + size :]


def cut(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A piece is missing, most often the end."""
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.5 else data[:at] + data[at + rng.randint(1, 64) :]


def insert(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Tokens of JSON, random bytes, or a piece of the document again."""
    at = rng.randrange(len(data) + 1)
    begin = rng.randrange(len(data))
    piece = rng.choice(
        (rng.choice(_TOKENS), rng.randbytes(rng.randint(1, 32)), data[begin : begin + rng.randint(1, 200)])
    )
    return data[:at] + piece * rng.choice((1, 1, 1, 2, 100)) + data[at:]


def splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The beginning of this one and the end of another."""
    other = rng.choice(others)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def noise(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Nothing of it is left."""
    return rng.randbytes(rng.choice((0, 1, 16, 300, 4096)))


def nest(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """JSON so deep that a recursive parser runs out of stack."""
    opening = rng.choice((b"[", b'{"payload":', b'{"signatures":['))
    return opening * rng.choice((50, 1000, MAX_BYTES // len(opening)))


def edit_json(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Another value somewhere in the envelope's JSON."""
    body = _json(data)
    if body is None:
        return flip_bits(rng, data, others)
    _edit_value(rng, body)
    return json.dumps(body).encode()


def swap_parts(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Payload, type or signatures of another envelope."""
    body, other = _json(data), _json(rng.choice(others))
    if body is None or other is None:
        return splice(rng, data, others)
    for name in rng.sample(("payload", "payloadType", "signatures"), rng.randint(1, 2)):
        body[name] = other.get(name)
    return json.dumps(body).encode()


def edit_signatures(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One signature twice, under another key id, altered, many times, or none."""
    body = _json(data)
    if body is None or not isinstance(body.get("signatures"), list) or not body["signatures"]:
        return cut(rng, data, others)
    signatures = body["signatures"]
    first = rng.choice(signatures)
    if not isinstance(first, dict) or not all(
        isinstance(first.get(name), str) and first[name] for name in ("keyid", "sig")
    ):
        return cut(rng, data, others)
    kind = rng.randrange(6)
    if kind == 0:
        body["signatures"] = []
    elif kind == 1:
        body["signatures"] = [first] * rng.choice((2, 100))
    elif kind == 2:
        body["signatures"] = [first | {"keyid": rng.randbytes(32).hex()}]
    elif kind == 3:
        body["signatures"] = [first, first | {"keyid": first["keyid"].upper()}]
    elif kind == 4:
        raw = bytearray(first["sig"].encode("utf-8", "surrogatepass"))
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        body["signatures"] = [first | {"sig": raw.decode("latin-1")}]
    else:
        body["signatures"] = [signatures[0]]
    return json.dumps(body).encode()


def edit_payload_bytes(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The payload under the signatures that are there, damaged as bytes."""
    body = _json(data)
    if body is None:
        return overwrite(rng, data, others)
    payload = base64.b64decode(body["payload"])
    damage = rng.choice((flip_bits, overwrite, cut, insert))
    changed = damage(rng, payload, [payload]) if payload else b"\0"
    return json.dumps(body | {"payload": base64.b64encode(changed).decode()}).encode()


def edit_payload_fields(message_class: type[Message]) -> Mutator:
    """One field of the payload becomes another, in a well-formed message under the signatures that are there."""

    def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        body = _json(data)
        if body is None:
            return flip_bits(rng, data, others)
        message = message_class()
        try:
            message.ParseFromString(base64.b64decode(body["payload"]))
        except DecodeError:
            return flip_bits(rng, data, others)
        edit_message(rng, message)
        changed = message.SerializeToString()
        return json.dumps(body | {"payload": base64.b64encode(changed).decode()}).encode()

    return mutate


def edit_message(rng: random.Random, message: Message) -> None:
    """Another value in one field, in place; goes into the messages in it."""
    field = rng.choice(message.DESCRIPTOR.fields)
    if rng.random() < 0.1:
        message.ClearField(field.name)
        return
    if field.is_repeated:
        values = getattr(message, field.name)
        if field.message_type is not None:
            edit_message(rng, values.add())
        else:
            values.append(_value(rng, field))
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        edit_message(rng, inner)
    else:
        setattr(message, field.name, _value(rng, field))


GENERAL: tuple[Mutator, ...] = (flip_bits, overwrite, cut, insert, splice, noise, nest)
OF_ENVELOPES: tuple[Mutator, ...] = (edit_json, swap_parts, edit_signatures, edit_payload_bytes)


def _json(data: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or not isinstance(body.get("payload"), str):
        return None
    try:
        base64.b64decode(body["payload"])
    except ValueError:
        return None
    return body


def _edit_value(rng: random.Random, body: dict[str, Any]) -> None:
    name = rng.choice(list(body))
    value = body[name]
    if isinstance(value, list) and value and isinstance(value[0], dict) and rng.random() < 0.7:
        _edit_value(rng, rng.choice(value))
        return
    anything = (None, True, -1, 1.5, "", "A" * 5000, [], {}, [[]], {"x": 1}, "\0", "\ud800", value)
    body[name] = rng.choice(anything)
    if rng.random() < 0.2:
        body[rng.choice(("payload", "payloadType", "signatures", "extra"))] = rng.choice(anything)


def _value(rng: random.Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice((0.0, 1.0, -1.0, float("nan"), float("inf"), 1e-9, rng.random()))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 16, 32, 2000)))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return rng.choice(
            ("", "bird", "cat", "homecams", "barn", "\0", "a" * 3000, "ü\N{RIGHT-TO-LEFT OVERRIDE}", str(rng.random()))
        )
    bits, signed = {
        FieldDescriptor.CPPTYPE_INT32: (32, True),
        FieldDescriptor.CPPTYPE_INT64: (64, True),
        FieldDescriptor.CPPTYPE_UINT32: (32, False),
        FieldDescriptor.CPPTYPE_UINT64: (64, False),
        FieldDescriptor.CPPTYPE_ENUM: (31, False),
    }[kind]
    value = rng.choice((*_INTERESTING, rng.getrandbits(bits)))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return max(low, min(high, -value if signed and rng.random() < 0.5 else value))
