"""Measures what audits may hold against a miner: `python -m distributed_training.calibrate --run runs/nano.toml`."""
