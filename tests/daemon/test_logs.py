"""One line per event, no secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import pytest

from weightd.daemon.limits import watch_lag
from weightd.daemon.logs import logging_to_stderr

SECRET = "https://user:hunter2@host/path?X-Amz-Signature=abcdef&part=1"


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_line_per_event_without_secrets(capfd: pytest.CaptureFixture[str], format: str) -> None:
    with logging_to_stderr("info", format):
        logging.getLogger("weightd.x").info("got %s\nand more", SECRET)
        logging.getLogger("weightd.x").debug("unseen")
        try:
            raise ValueError(SECRET)
        except ValueError:
            logging.getLogger("weightd.x").exception("failed")
        logging.getLogger("weightd.x").info("and %r", "s3://key:hunter2@bucket/it's?sig=abcdef'abcdef")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    last = lines.pop()
    assert "s3://bucket/it's?sig=" in last
    assert "hunter2" not in last
    assert "abcdef" not in last
    for line in lines:
        assert "hunter2" not in line
        assert "abcdef" not in line
        assert "https://host/path?X-Amz-Signature=" in line
    assert "ValueError" in lines[1]
    if format == "json":
        event = json.loads(lines[0])
        assert (event["level"], event["logger"]) == ("info", "weightd.x")
        assert event["time"].endswith("Z")


def test_the_root_logger_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    before = (logging.root.level, list(logging.root.handlers))
    with logging_to_stderr("debug", "text"):
        pass
    assert (logging.root.level, list(logging.root.handlers)) == before


def test_libraries_that_log_headers_do_not(capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("debug", "text"):
        for name in ("httpcore.http11", "httpx", "urllib3.connectionpool", "aiohttp.client", "huggingface_hub.utils"):
            logging.getLogger(name).info("authorization: hunter2")
    assert capfd.readouterr().err == ""


async def test_a_blocked_loop_is_noticed() -> None:
    noticed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    handler = logging.Handler()
    handler.emit = lambda record: noticed.done() or noticed.set_result(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("weightd.daemon")
    logger.addHandler(handler)
    task = asyncio.create_task(watch_lag(period=0.01))
    try:
        await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 - what the monitor is to notice
        assert (await noticed).startswith("the event loop was held up for")
    finally:
        logger.removeHandler(handler)
        task.cancel()
        await asyncio.wait([task])


def test_a_client_that_leaves_as_its_answer_is_sent_is_no_fault(capfd: pytest.CaptureFixture[str]) -> None:
    from grpc._cython import cygrpc

    with logging_to_stderr("info", "text"):
        for error in (cygrpc.ExecuteBatchError("Failed"), RuntimeError("a real one")):
            try:
                raise error
            except Exception:
                logging.getLogger("grpc._cython.cygrpc").exception("raised in core by servicer method")
    (line,) = capfd.readouterr().err.splitlines()
    assert "a real one" in line
