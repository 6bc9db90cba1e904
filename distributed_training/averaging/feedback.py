"""Error feedback: what a codec lost of one contribution is added to the next, so that in the end everything is sent.

The residual r [P] is the sender's own state. Of a contribution g it encodes g + r, and what is lost is the new r:

    sent + r_new = g + r_old          to one float32 rounding of each side

A sender that `keeps` only a share b < 1 of what it owes adds b r instead (Sarfi et al. 2025).

An attempt holds its errors apart. They become the residual only when the round committed; a failed round leaves the
residual untouched, and the next attempt with the same group sends the same bytes. Seide et al. 2014, Karimireddy et al.
2019. In units of the contribution: if that is a mean, so is the residual, whatever weight the next mean has.

The reducer of a share could keep a residual of its averages in the same way (`Attempt.encode` with the average). Rounds
do not: shares move between reducers, which would take old errors with them, and nobody could check a reducer's average
against the parts any more. An average that needs more precision than its parts is given a finer codec
("int2-block64+int8-block256").
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distributed_training.averaging.codecs.codec import Codec, Floats, require_within
from template.errors import AveragingError, CorruptState

RESIDUAL = "residual"


def encode_with_error(codec: Codec, values: Floats) -> tuple[memoryview, Floats]:
    """The payload of `values` [n], and what it does not carry: values - decoded, float32 [n].

    Raises:
        AveragingError: a value has no code.
    """
    payload = codec.encode(values)
    decoded = codec.decode(payload, values.size)
    return payload, np.subtract(values, decoded)


class Attempt:
    """One attempt to send contributions [P], piece by piece. Any thread may encode; each piece by one at a time."""

    def __init__(self, residual: Floats, keeps: float = 1.0) -> None:
        self._residual = residual
        self._keeps = np.float32(keeps)
        self._errors: dict[int, Floats] = {}

    def owed(self, start: int, values: Floats) -> Floats:
        """`values` [n] at `start` and what is owed there.

        Raises:
            AveragingError: they do not lie in the vector.
        """
        stop = start + values.size
        if not 0 <= start <= stop <= self._residual.size:
            raise AveragingError(f"a piece [{start}, {stop}) of a vector of {self._residual.size} values")
        with np.errstate(over="ignore"):  # what becomes infinite has no code
            return values + self._residual[start:stop] * self._keeps

    def encode(self, codec: Codec, start: int, values: Floats) -> memoryview:
        """The payload of `values` [n], which lie at `start` in the vector, and of what is owed there.

        The same piece again gives the same bytes.

        Raises:
            AveragingError: value and residual together have no code; the piece counts as not sent.
        """
        payload, error = encode_with_error(codec, self.owed(start, values))
        self._errors[start] = error
        return payload

    def whole(self, start: int, values: Floats, limit: float) -> Floats:
        """Values and what is owed [n], for a piece that travels without loss: our part of our own share.

        Raises:
            AveragingError: the sum is beyond `limit`.
        """
        owed = self.owed(start, values)
        require_within(owed, limit)
        self._errors[start] = np.zeros(values.size, dtype=np.float32)
        return owed

    def errors(self) -> Mapping[int, Floats]:
        """The new residual of every piece that was sent, by its start.

        Raises:
            AveragingError: two pieces overlap, so that it is not known which of them was sent.
        """
        reached = 0
        for start, error in sorted(self._errors.items()):
            if start < reached:
                raise AveragingError(f"two pieces that were sent in one attempt overlap at {start}")
            reached = start + error.size
        return self._errors


class ErrorFeedback:
    """The residual of one sender [P]. Starts at zero; lives in the checkpoint."""

    def __init__(self, size: int, keeps: float = 1.0) -> None:
        self._keeps = keeps
        self._residual = np.zeros(size, dtype=np.float32)
        self._residual.flags.writeable = False

    @property
    def residual(self) -> Floats:
        """What is owed, float32 [P], read-only; a later commit makes a new array."""
        return self._residual

    def attempt(self) -> Attempt:
        """Begin to send; changes nothing."""
        return Attempt(self._residual, self._keeps)

    def commit(self, attempt: Attempt) -> None:
        """The round took what the attempt sent. Pieces that were not sent still owe what they owed.

        Raises:
            AveragingError: the attempt began before another one was committed, or its pieces overlap.
        """
        if attempt._residual is not self._residual:
            raise AveragingError("the attempt belongs to an older residual, or is not ours")
        errors = attempt.errors()
        residual = self._residual.copy()
        for start, error in errors.items():
            residual[start : start + error.size] = error
        self._adopt(residual)

    def clear(self) -> None:
        """Forget what is owed: for a peer that goes on from a state that it did not train towards."""
        self._adopt(np.zeros_like(self._residual))

    def state_dict(self) -> dict[str, Floats]:
        """What must survive a restart: the residual."""
        return {RESIDUAL: self._residual}

    def load_state_dict(self, state: Mapping[str, Floats]) -> None:
        """Go on with the residual of a checkpoint.

        Raises:
            CorruptState: another size or type, or values that are not finite; nothing was changed.
        """
        residual = state.get(RESIDUAL)
        if residual is None or residual.dtype != np.float32 or residual.shape != self._residual.shape:
            raise CorruptState(f"the residual of error feedback is not float32 [{self._residual.size}]")
        if not np.isfinite(residual).all():
            raise CorruptState("the residual of error feedback holds values that are not finite")
        self._adopt(residual.copy())

    def _adopt(self, residual: Floats) -> None:
        residual.flags.writeable = False
        self._residual = residual
