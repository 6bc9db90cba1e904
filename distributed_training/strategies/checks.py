"""Refusals of hyper-parameters: at once, and with the remedy."""

from __future__ import annotations

import math

from distributed_training.averaging.codecs.names import TopKName, parse_codec
from template.errors import AveragingError, ConfigurationError


def require(condition: bool, message: str) -> None:
    """Raise ConfigurationError with `message` unless `condition`."""
    if not condition:
        raise ConfigurationError(message)


def require_period(period: int) -> None:
    """Local steps between two exchanges."""
    require(period >= 1, f"period must be at least 1 local step; found {period}")


def require_outer(learning_rate: float, momentum: float) -> None:
    """Of an outer optimiser."""
    positive = math.isfinite(learning_rate) and learning_rate > 0
    require(positive, f"outer_learning_rate must be positive; found {learning_rate}")
    require(0 <= momentum < 1, f"outer_momentum must lie in [0, 1); found {momentum}")


def require_codec(codec: str, feedback: float, *, sparse: bool) -> None:
    """A codec for what is gathered, and the share of what it lost that is sent later (error feedback)."""
    try:
        name = parse_codec(codec)
    except AveragingError as error:
        raise ConfigurationError(f"codec: {error}") from error
    require(
        0 <= feedback <= 1, f"feedback must lie in [0, 1], the share of what is owed that is kept; found {feedback}"
    )
    lossless = name.text == "none"
    require(not (lossless and feedback), "feedback must be 0 with codec 'none', which loses nothing")
    top_k = isinstance(name, TopKName)
    require(top_k or not sparse, f"codec must be sparse here, for example topk32-int2-block512; found '{codec}'")
    require(sparse or not top_k, f"codec '{codec}' is sparse: take the strategy sparseloco")
