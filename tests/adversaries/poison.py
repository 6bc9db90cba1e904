"""Miners that train and report honestly, and put something else into the average."""

from __future__ import annotations

import numpy as np

from distributed_training.composition import EngineFactory
from distributed_training.data.loader import Loader
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.model.layout import Vector
from distributed_training.run import RunSpec


class Poisoner(Engine):
    """Puts `poisoned(vector)` in the place of its contribution [P]."""

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        super().__init__(spec, loader.tokenizer.vocab_size, device)
        self._uid = uid
        self._random = np.random.default_rng(uid)

    def contribution(self) -> Contribution:
        honest = super().contribution()
        return Contribution(self.poisoned(honest.vector.copy()), honest.samples, honest.records)

    def poisoned(self, vector: Vector) -> Vector:
        """What goes into the average for the honest `vector` [P], which may be changed."""
        raise NotImplementedError


class NotANumber(Poisoner):
    """A few NaN. Hopes that the whole average, and so everybody's model, is lost."""

    def poisoned(self, vector: Vector) -> Vector:
        vector[:: max(1, vector.size // 7)] = np.nan
        return vector


class Infinite(Poisoner):
    """A few infinities. Hopes for the same."""

    def poisoned(self, vector: Vector) -> Vector:
        vector[:: max(1, vector.size // 7)] = np.inf
        return vector


class NormInflation(Poisoner):
    """A hundred times its gradient. Hopes that the model learns from its pages alone."""

    def poisoned(self, vector: Vector) -> Vector:
        return vector * np.float32(100)


class SignFlip(Poisoner):
    """Minus three times its gradient. Hopes that the model unlearns."""

    def poisoned(self, vector: Vector) -> Vector:
        return vector * np.float32(-3)


class Spike(Poisoner):
    """Nothing but a hundred times the usual at coordinates of its own, where nobody else is loud.

    Hopes that a rule that looks at norms, or at each coordinate by itself, lets it act there at full strength.
    """

    COUNT = 8

    def poisoned(self, vector: Vector) -> Vector:
        spiked = np.zeros_like(vector)
        chosen = np.random.default_rng(self._uid).choice(vector.size, self.COUNT, replace=False)
        spiked[chosen] = 100 * np.abs(vector).mean() * np.sign(vector[chosen] + np.float32(1e-30))
        return -spiked


class Garbage(Poisoner):
    """Noise with the norm of its gradient. Hopes that reports are all that is looked at."""

    def poisoned(self, vector: Vector) -> Vector:
        noise = self._random.standard_normal(vector.size)
        return (noise * np.linalg.norm(vector) / np.linalg.norm(noise)).astype(np.float32)


class HonestWhereSeen(Poisoner):
    """Minus three times its gradient, but for the coordinates of the records, which everybody knows beforehand.

    Hopes that a contribution is compared with its records at these alone.
    """

    def poisoned(self, vector: Vector) -> Vector:
        chosen = coordinates(self._spec.run_id, self.epoch, self.layout, self._spec.audit.coordinates)
        flipped = vector * np.float32(-3)
        flipped[chosen] = vector[chosen]
        return flipped


class ColludingCopies(Poisoner):
    """All that behave so send one and the same vector, which leads away. Hopes that what several send is the median."""

    def poisoned(self, vector: Vector) -> Vector:
        direction = np.random.default_rng(self.epoch).standard_normal(vector.size)
        return (3 * direction * np.linalg.norm(vector) / np.linalg.norm(direction)).astype(np.float32)


POISONS: dict[str, EngineFactory] = {
    "nan": NotANumber,
    "infinite": Infinite,
    "inflation": NormInflation,
    "sign-flip": SignFlip,
    "spike": Spike,
    "garbage": Garbage,
    "honest-where-seen": HonestWhereSeen,
    "colluding-copies": ColludingCopies,
}
