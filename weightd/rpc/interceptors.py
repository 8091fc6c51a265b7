"""The one place where what a handler raises becomes a gRPC status.

Not a `grpc.aio.ServerInterceptor`: those run for every call, and an acquire is to cost little more than a bare call
(DESIGN §9). Every handler is wrapped once, when it is registered.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from weightd.core.errors import WeightdError
from weightd.wire.errors import DETAIL_KEY, status_of, to_detail, to_message
from weightd.wire.runtime import grpc

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Answer = TypeVar("Answer")
Handler = Callable[[Request, Context], Awaitable[Answer]]

INTERNAL: Final = WeightdError("the daemon failed unexpectedly", remedy="See the daemon's log and report it.")
"""All that a caller learns of a bug: the details may hold what it must not see, and stay in the log."""


def guarded(method: str, handler: Handler[Request, Answer]) -> Handler[Request, Answer]:
    """`handler`, its errors answered: WeightdError by the table, others INTERNAL and logged; cancellation passes."""

    async def run(request: Request, context: Context) -> Answer:
        try:
            return await handler(request, context)
        except WeightdError as error:
            found = error
        except grpc.aio.BaseError:
            raise  # gRPC's own: the caller is gone, or a handler has aborted
        except Exception:
            log.exception("%s failed unexpectedly", method)
            found = INTERNAL
        await context.abort(status_of(found), to_message(found), trailing_metadata=((DETAIL_KEY, to_detail(found)),))

    return run
