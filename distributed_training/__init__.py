"""Everything about training: data, model, engine, averaging, hub, scores and the two roles."""

__version__ = "0.1.0"
