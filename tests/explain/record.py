"""Makes tests/fixtures/validator_log.jsonl anew, after events have changed: python -m tests.explain.record

A short localnet with a free-rider; the first validator's log, without what names this machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from distributed_training.localnet.__main__ import main

FIXTURES = Path(__file__).parents[1] / "fixtures"
LEFT_OUT = {"RequestServed", "Published", "CorpusOpened", "NeuronStopped"}


def record() -> int:
    """The localnet's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        net = Path(folder) / "net"
        options = ["--miners", "4", "--validators", "2", "--epochs", "8", "--adversary", "free-rider"]
        status = main([*options, "--run", str(FIXTURES / "tiny.toml"), "--folder", str(net)])
        with (FIXTURES / "validator_log.jsonl").open("w") as kept:
            for line in (net / "validator-1" / "events.jsonl").read_text().splitlines(keepends=True):
                if json.loads(line)["kind"] not in LEFT_OUT:
                    kept.write(line)
    return status


if __name__ == "__main__":
    sys.exit(record())
