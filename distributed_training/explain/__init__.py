"""Where a weight comes from, for the people who are paid by it: from a validator's log, or from its signed reports.

python -m distributed_training.explain --uid 3 --log .localnet/validator-1/events.jsonl
"""
