"""Log lines for a terminal and for a file."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.logging import RichHandler

from template.console import LoggingConfig, log_handler, printable, set_up_logging


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("template.x", logging.WARNING, __file__, 1, text, None, None)


def test_plain_lines_where_there_is_no_terminal() -> None:
    """Date, level, name and text; no colour codes, control characters of strangers escaped."""
    text = io.StringIO()
    log_handler(Console(file=text)).emit(record("peer says \x1b[2J\r[red]hi"))
    level = f"{logging.getLevelName(logging.WARNING):<7}"  # hivemind, once imported, gives levels names of its own
    assert text.getvalue().endswith(f" {level} template.x: peer says \\x1b[2J\\r[red]hi\n")


def test_rich_lines_on_a_terminal() -> None:
    """Coloured, with markup shown as text."""
    text = io.StringIO()
    handler = log_handler(Console(file=text, force_terminal=True, width=120))
    handler.emit(record("peer says [red]hi \x1b[2J"))
    assert isinstance(handler, RichHandler)
    assert "[red]hi" in text.getvalue().replace("\x1b[0m", "")
    assert "\x1b[2J" not in text.getvalue()


def test_set_up_replaces_what_was_there(root: logging.Logger) -> None:
    """Called twice, there is one handler and the last level."""
    set_up_logging(LoggingConfig(level="debug"))
    set_up_logging(LoggingConfig(level="error"))
    assert len(root.handlers) == 1
    assert root.level == logging.ERROR


def test_printable_keeps_text_in_any_script() -> None:
    """Only what could steer a terminal is escaped."""
    assert printable("Grüße, 世界\n\tok") == "Grüße, 世界\n\tok"
    assert printable("\x07\x9b\u202e") == "\\x07\\x9b\\u202e"
