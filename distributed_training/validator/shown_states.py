"""Has a miner show a state that it has committed to: the seam of replays, and how it is done over peers' streams."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distributed_training.averaging.state_download import DownloadConfig, Source, Wanted, download_state
from distributed_training.averaging.state_transfer import in_thread
from distributed_training.averaging.streams import Transport
from distributed_training.model.files import read_state
from distributed_training.model.layout import Layout
from distributed_training.model.state import State
from distributed_training.protocol import Mark, PeerBinding
from template.errors import AveragingError, StateError

SHOWN = "shown-"  # prefix of the folders that states are received in
ONCE = DownloadConfig(sources=1)


class ShownStates(Protocol):
    """Where states come from that miners have committed to."""

    async def show(self, uid: int, peer: PeerBinding, mark: Mark) -> State:
        """The state behind a mark, its hash checked.

        Raises:
            StateError, AveragingError: the miner does not show it, or it is not what the mark says.
        """


@dataclass(frozen=True)
class PeerStates:
    """From the miner itself. What is asked for has a known size, and each piece is checked when it arrives."""

    transport: Transport
    binding: PeerBinding
    run_id: str
    layout: Layout
    vectors: tuple[str, ...]
    architecture: Mapping[str, Any]
    folder: Path

    async def show(self, uid: int, peer: PeerBinding, mark: Mark) -> State:
        wanted = Wanted(
            peer=self.binding,
            run_id=self.run_id,
            epoch=mark.steps,
            state_hash=mark.state,
            layout=self.layout,
            optimizer=self.vectors,
            config=self.architecture,
        )
        source = Source(name=f"peer:{uid}", peer_id=peer.peer_id, addresses=peer.addresses)
        reasons: list[str] = []
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=SHOWN) as parent:
            folder = Path(parent) / "state"
            try:
                await download_state(
                    self.transport,
                    [source],
                    wanted,
                    folder,
                    refused=lambda _, reason: reasons.append(reason),
                    config=ONCE,
                )
            except AveragingError as error:
                raise AveragingError("; ".join([*reasons, str(error)])) from error
            state = await in_thread(lambda: read_state(folder, self.layout, self.run_id, self.vectors, mark.state))
        if (state.model_hash, state.vectors_hash) != (mark.params, mark.inner):
            raise StateError("the state that it shows is not what its mark says besides the hash")
        return state
