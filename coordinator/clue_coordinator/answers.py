"""Errors as gRPC answers."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from clue_coordinator.errors import (
    ConflictError,
    CoordinatorError,
    FlowerError,
    LogDamagedError,
    UsageError,
    WrongTokenError,
)
from clue_protocol.errors import DocumentError, ProtocolError

_STATUS = {
    UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    DocumentError: grpc.StatusCode.INVALID_ARGUMENT,
    ConflictError: grpc.StatusCode.FAILED_PRECONDITION,
    WrongTokenError: grpc.StatusCode.UNAUTHENTICATED,
    FlowerError: grpc.StatusCode.UNAVAILABLE,
    LogDamagedError: grpc.StatusCode.DATA_LOSS,
}


@contextmanager
def answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn our errors into gRPC status codes with the one-line message."""
    try:
        yield
    except (CoordinatorError, ProtocolError) as error:
        code = next((c for kind, c in _STATUS.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
        context.abort(code, str(error))
