"""What nodes tell each other, as values: a payload, and how the payloads of all nodes are combined.

Who moves a message counts its payload: there is no other way from one node to another. The codecs are those of the live
subnet (averaging/codecs/names.py); "none" stays a tensor on its device, 4 bytes a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from distributed_training.averaging.codecs.codec import Codec
from distributed_training.averaging.codecs.registry import codec_named, pair_named
from distributed_training.averaging.feedback import encode_with_error
from template.errors import AveragingError, StrategyError

PLAIN = "none"
_FLOAT = 4  # bytes


class Combine(Enum):
    """MEAN: everybody gets the mean of all payloads. GATHER: everybody gets every payload."""

    MEAN = "mean"
    GATHER = "gather"


@dataclass(frozen=True, eq=False)
class Message:
    """`count` float32 values by `codec`: a tensor [count] for "none", else the bytes that the codec makes.

    For MEAN `codec` may be a pair "parts+average". With a `delay` of d steps the result is needed only after d more
    local steps, and the transfer may take place meanwhile.
    """

    operation: str
    combine: Combine
    codec: str
    payload: torch.Tensor | memoryview
    count: int
    delay: int = 0

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return _FLOAT * self.payload.numel() if isinstance(self.payload, torch.Tensor) else self.payload.nbytes


@dataclass(frozen=True, eq=False)
class Received:
    """A combined message: (mean,) or the values of all nodes by rank, float32 [count] each. Only to be read."""

    operation: str
    values: tuple[torch.Tensor, ...]

    def mean(self) -> torch.Tensor:
        """The mean of the values, a new tensor [count]."""
        return mean_of(self.values)


def plain(operation: str, values: torch.Tensor, delay: int = 0) -> Message:
    """`values` [n] as they are, to be averaged."""
    return Message(operation, Combine.MEAN, PLAIN, values, values.numel(), delay)


def encoded(operation: str, codec: str, values: torch.Tensor, delay: int = 0) -> tuple[Message, torch.Tensor]:
    """`values` [n] by `codec`, to be gathered, and what the codec lost of them [n].

    Raises:
        StrategyError: a value has no code, for example because it is not finite.
    """
    if codec == PLAIN:
        return Message(operation, Combine.GATHER, codec, values, values.numel(), delay), torch.zeros_like(values)
    try:
        payload, error = encode_with_error(codec_named(codec), values.detach().cpu().numpy())
    except AveragingError as failure:
        raise StrategyError(f"'{operation}' cannot be sent: {failure}") from failure
    message = Message(operation, Combine.GATHER, codec, payload, values.numel(), delay)
    return message, torch.from_numpy(error).to(values.device)


def combined(messages: Sequence[Message], device: torch.device) -> Received:
    """What everybody receives of one message a node, in the order of their ranks.

    Raises:
        StrategyError: they are not of one kind, or a payload is not what its codec makes.
    """
    first = messages[0]
    kinds = {(m.operation, m.combine, m.codec, m.count, m.delay) for m in messages}
    if len(kinds) > 1:
        raise StrategyError(f"nodes send messages that do not fit together: {sorted(map(str, kinds))}")
    try:
        pair = pair_named(first.codec) if first.combine is Combine.MEAN else None
        values = tuple(_values(m, pair.parts if pair else codec_named(m.codec), device) for m in messages)
        if pair is None:
            return Received(first.operation, values)
        return Received(first.operation, (_travelled(mean_of(values), pair.average),))
    except AveragingError as failure:
        raise StrategyError(f"'{first.operation}' cannot be combined: {failure}") from failure


def combined_size(message: Message) -> int:
    """Bytes of the mean that a MEAN message's sender gets back."""
    return pair_named(message.codec).average.encoded_size(message.count)


def mean_of(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of tensors [n], a new one, added up in their order."""
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total.div_(len(values))


def _values(message: Message, codec: Codec, device: torch.device) -> torch.Tensor:
    payload = message.payload
    if isinstance(payload, memoryview):
        return torch.from_numpy(codec.decode(payload, message.count).copy()).to(device)
    if message.codec.partition("+")[0] != PLAIN or payload.dtype != torch.float32 or payload.shape != (message.count,):
        raise StrategyError(
            f"'{message.operation}': a tensor travels as float32 [count] with codec '{PLAIN}', not as {payload.dtype} "
            f"{list(payload.shape)} with '{message.codec}'"
        )
    return payload.to(device)


def _travelled(mean: torch.Tensor, codec: Codec) -> torch.Tensor:
    """The mean as everybody decodes it."""
    if codec.name == PLAIN:
        return mean
    payload = codec.encode(mean.cpu().numpy())
    return torch.from_numpy(codec.decode(payload, mean.numel()).copy()).to(mean.device)
