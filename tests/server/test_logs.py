"""Log as JSON, and a stderr that nobody reads."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest

from server import logs
from tests.conftest import wait_for

log = logging.getLogger("gpt2d")


def test_a_record_is_an_object_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.to_stderr("json"):
        log.info("%s,\nand %d", "ü", 2)
        try:
            raise ValueError("a fault")
        except ValueError:
            logging.getLogger("gpt2d.worker").exception("it failed")
    plain, fault = map(json.loads, capsys.readouterr().err.splitlines())
    assert {k: v for k, v in plain.items() if k != "time"} == {
        "level": "INFO",
        "logger": "gpt2d",
        "message": "ü,\nand 2",
    }
    assert (
        plain["time"].endswith("Z")
        and abs((datetime.now(UTC) - datetime.fromisoformat(plain["time"])).total_seconds()) < 60
    )
    assert (fault["level"], fault["logger"], fault["message"]) == ("ERROR", "gpt2d.worker", "it failed")
    assert fault["exception"].startswith("Traceback") and fault["exception"].endswith("ValueError: a fault")


def test_text_keeps_its_form(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.to_stderr("text"):
        log.warning("one")
        try:
            raise ValueError("a fault")
        except ValueError:
            log.exception("two")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(" WARNING one") and lines[1].endswith(" ERROR two") and lines[-1] == "ValueError: a fault"
    assert len(lines) > 3, "with the traceback"


def test_what_a_stderr_that_stood_still_has_lost_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()

    class Stopped(io.StringIO):
        def write(self, text: str) -> int:
            assert goes_on.wait(20)
            return super().write(text)

    stopped = Stopped()
    monkeypatch.setattr(sys, "stderr", stopped)
    monkeypatch.setattr(logs, "QUEUE", 4)
    with logs.to_stderr("text"):
        for _ in range(20):
            log.info("early")
        goes_on.set()
        wait_for(lambda: stopped.getvalue().count("early\n") >= 4)
        log.info("late")
    written = stopped.getvalue()
    lost = [int(number) for number in re.findall(r"WARNING (\d+) lines of the log were lost: ", written)]
    assert lost and sum(lost) + written.count("early\n") == 20 and written.endswith("INFO late\n")


def test_the_logger_is_afterwards_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "gpt2d"):
        handlers = [*log.handlers]
        with logs.to_stderr("text"):
            assert log.isEnabledFor(logging.INFO)
        assert (log.level, log.handlers) == (logging.ERROR, handlers)


def test_a_stderr_that_nobody_reads_holds_nothing_up() -> None:
    code = (
        "import logging; from server import logs\n"
        f"with logs.to_stderr('json'):\n for i in range({3 * logs.QUEUE}): logging.getLogger('gpt2d').info('x' * 100)\n"
        "import os; os._exit(0)"  # a blocked thread of the standard library's would hold up the interpreter's end
    )
    read, write = os.pipe()
    try:
        assert subprocess.run([sys.executable, "-c", code], stderr=write, timeout=30, check=False).returncode == 0
    finally:
        os.close(read)
        os.close(write)
