"""Base classes of the messages between neurons. A synapse is a request model with the response model it asks for.

The name of the request class is the path: `POST /<ClassName>`. Unknown fields, NaN and infinities are refused.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, StringConstraints

RunId = Annotated[str, StringConstraints(min_length=1, max_length=96, pattern=r"^[a-z0-9][a-z0-9.-]*$")]


class Message(BaseModel):
    """Anything that crosses the wire: immutable, closed, finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Response(Message):
    """What a handler returns."""


class Request(Message):
    """What a caller asks. Subclasses set `Answer` to the response class."""

    Answer: ClassVar[type[Response]]

    run_id: RunId
