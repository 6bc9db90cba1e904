"""What a person sees in a terminal: log lines, one-line errors, plain text. Set up by entry points only."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.text import Text

from template.config import option

PLAIN_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


# Libraries that log a line for each request; the same is in telemetry, with its outcome.
CHATTY = ("httpx", "httpcore", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Log lines on standard error."""

    level: Literal["debug", "info", "warning", "error"] = option("least severe line that is shown", default="info")


def set_up_logging(config: LoggingConfig) -> None:
    """Send log lines to standard error: coloured on a terminal, plain lines with a date elsewhere.

    Replaces the handlers of the root logger, so calling it again only changes the level.
    """
    logging.basicConfig(level=config.level.upper(), handlers=[log_handler(Console(stderr=True))], force=True)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))


class PrintableFormatter(logging.Formatter):
    """Shows control characters as escapes: a log line may hold a stranger's text."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def printable(text: str) -> str:
    """The text with every character that could steer a terminal as its escape; newlines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def log_handler(console: Console) -> logging.Handler:
    """The handler for one console; markup is off for the same reason."""
    if console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=console, markup=False, highlighter=NullHighlighter(), show_path=False, rich_tracebacks=True
        )
        handler.setFormatter(PrintableFormatter("%(name)s: %(message)s"))
        return handler
    handler = logging.StreamHandler(console.file)
    handler.setFormatter(PrintableFormatter(PLAIN_FORMAT))
    return handler


def print_error(message: str) -> None:
    """One red line on standard error."""
    line = Text(printable("error: " + " ".join(message.split())), style="red")
    Console(file=sys.stderr, soft_wrap=True, highlight=False).print(line)


def print_text(text: str) -> None:
    """Text as it is on standard output."""
    Console(file=sys.stdout, soft_wrap=True, highlight=False).print(Text(text), end="")
