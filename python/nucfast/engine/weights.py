"""Weights that one ONNX file takes from another, so that a bundle holds them once.

Protocol Buffers that follow one another are one message: fields that stand once merge, repeated ones follow
each other. So an ONNX file that lacks initialisers becomes whole when a message of only these follows it.
"""

from __future__ import annotations

from collections.abc import Iterator

# Field numbers and a value of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_DATA_TYPE = 2
_FLOAT16 = 10

# Kinds of fields on the wire.
_VARINT, _FIXED_64, _LENGTH, _FIXED_32 = 0, 1, 2, 5


def with_half_weights(model: bytes, source: bytes) -> bytes:
    """An ONNX model with the fp16 initialisers of another one added to its own.

    Raises:
        ValueError: ``source`` is not an ONNX model.
    """
    tensors = [
        tensor
        for graph in _messages(memoryview(source), _MODEL_GRAPH)
        for tensor in _messages(graph, _GRAPH_INITIALIZER)
        if _FLOAT16 in _varints(tensor, _TENSOR_DATA_TYPE)
    ]
    graph = b"".join(_field(_GRAPH_INITIALIZER, tensor) for tensor in tensors)
    return model + _field(_MODEL_GRAPH, memoryview(graph))


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    return (value for found, value in _fields(message) if found == number and isinstance(value, memoryview))


def _varints(message: memoryview, number: int) -> set[int]:
    return {value for found, value in _fields(message) if found == number and isinstance(value, int)}


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of each field; a memoryview of those that have a length."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _read_varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _LENGTH:
            size, at = _read_varint(message, at)
        elif kind in (_FIXED_64, _FIXED_32):
            size = 8 if kind == _FIXED_64 else 4
        else:
            raise ValueError(f"source: a field of the unknown kind {kind}")
        if at + size > len(message):
            raise ValueError("source: it ends within a field")
        yield tag >> 3, message[at : at + size]
        at += size


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("source: it ends within a number")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("source: a number of more than 64 bits")


def _field(number: int, content: memoryview) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
