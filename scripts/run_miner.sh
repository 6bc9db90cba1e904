#!/usr/bin/env bash
# Runs a miner. All flags are passed on; scripts/run_miner.sh --help lists them. An example on the test network:
#
#   scripts/run_miner.sh --run runs/nano.toml --netuid 1 --folder ~/miner --subtensor.network test \
#       --wallet.name my-wallet --wallet.hotkey my-miner --axon.external_ip 203.0.113.7 --axon.port 8091 \
#       --dht.port 8092 --dht.direct_port 8093 --hub.url hf://my-organisation/my-run \
#       --telemetry.jsonl ~/miner/events.jsonl
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install
exec "${VENV:-.venv}/bin/python" -m neurons.miner "$@"
