"""The inner optimiser's settings as the arena takes them: the schedule as shares of a run's length."""

from __future__ import annotations

from dataclasses import dataclass

from distributed_training.run import OptimizerSpec
from template.config import option


@dataclass(frozen=True, kw_only=True)
class InnerConfig:
    """The inner optimiser: clipping, linear warm-up and a cosine over the whole run."""

    learning_rate: float = option("highest learning rate", default=2e-3)
    minimum: float = option("the last one, as a share of it", default=0.1)
    warmup: float = option("share of the steps", default=0.1)
    beta1: float = option("AdamW", default=0.9)
    beta2: float = option("AdamW", default=0.95)
    epsilon: float = option("AdamW", default=1e-8)
    weight_decay: float = option("decoupled; of matrices only", default=0.1)
    clip_norm: float = option("largest norm of a gradient", default=1.0)

    def spec(self, steps: int) -> OptimizerSpec:
        """For a run of so many steps; raises ConfigurationError for impossible numbers."""
        return OptimizerSpec(
            learning_rate=self.learning_rate,
            minimum_learning_rate=self.learning_rate * self.minimum,
            warmup_epochs=min(round(self.warmup * steps), steps - 1),
            decay_epochs=steps,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
        )
