"""The log has one line per event, from structlog and the standard library; a failure to log
raises no error in the calling code."""

import io
import json
import logging
import sys
from threading import Thread
from typing import Any

import pytest
import structlog

from app.ops.logging import REDACTED, configure_logging
from shared.settings import Settings
from tests.app_helpers import capture_log

ours = structlog.get_logger("kettle")
theirs = logging.getLogger("kettle")


@pytest.fixture(params=["json", "console"])
def lines(request: pytest.FixtureRequest) -> io.StringIO:
    configure_logging(Settings(env="test", log_format=request.param))
    return capture_log()


@pytest.mark.parametrize("lines", ["json"], indirect=True)
def test_events_and_records_give_the_same_lines(lines: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(request_id="12345678", new_password="secret"):
        for log in (ours, theirs):
            log.debug("cools")
            log.warning("boils")
            try:
                burst()
            except RuntimeError:
                log.exception("bursts")
    written = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [told(line) for line in written[:2]] == [told(line) for line in written[2:]]
    boils, bursts = written[:2]
    assert told(boils) == {
        "event": "boils",
        "level": "warning",
        "request_id": "12345678",
        "new_password": REDACTED,
    }
    assert bursts["level"] == "error"
    assert all(line["exception"][0]["exc_value"] == "a bug" for line in written[1::2])


def burst() -> None:
    raise RuntimeError("a bug")


def told(line: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a log line without the timestamp and the traceback."""
    return {key: value for key, value in line.items() if key not in {"timestamp", "exception"}}


def test_the_latest_settings_hold_for_a_logger_that_was_used_before(lines: io.StringIO) -> None:
    ours.info("fills")
    assert "fills" in lines.getvalue()
    configure_logging(Settings(env="test", log_level="warning"))
    lines = capture_log()
    ours.info("fills")
    assert lines.getvalue() == ""


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("a bug")


def test_a_log_that_cannot_be_written_raises_nothing(
    lines: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    ours.warning("boils", kettle=Unspeakable())
    assert lines.getvalue() == ""
    assert "a bug" in capsys.readouterr().err
    lines.close()
    for log in (ours, theirs):
        log.warning("boils")
    assert "closed file" in capsys.readouterr().err


class Pieces(io.StringIO):
    """A stream that writes character by character, so that other threads could interleave."""

    def write(self, text: str, /) -> int:
        for character in text:
            super().write(character)
        return len(text)


@pytest.mark.parametrize("lines", ["json"], indirect=True)
def test_lines_of_threads_stay_whole(lines: io.StringIO) -> None:
    lines, count = capture_log(Pieces()), 200

    def boil(log: Any) -> None:
        for _ in range(count):
            log.warning("boils")

    threads = [Thread(target=boil, args=[log], daemon=True) for log in (ours, theirs) * 2]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a thread did not write its lines within 30 s"
    finally:
        sys.setswitchinterval(before)
    written = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["event"] for line in written] == ["boils"] * count * len(threads)
