"""A value that must never be shown: the access token of a hub."""

from __future__ import annotations

from template.errors import ConfigurationError


class Secret:
    """Holds a token; `repr`, `str` and messages passed through `scrub` show `***` instead.

    Raises:
        ConfigurationError: empty, or with characters that cannot stand in an HTTP header (a trailing newline, mostly).
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            raise ConfigurationError(
                "the hub token is empty or has spaces, line ends or non-ASCII characters in it: copy it again"
            )
        self._value = value

    def reveal(self) -> str:
        """The token itself; only for the request that needs it."""
        return self._value

    def scrub(self, text: str) -> str:
        """`text` without the token."""
        return text.replace(self._value, "***")

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not written anywhere")
