"""A miner: trains all the time, says what it did, takes part in rounds, and gets back in step when it fell out."""

from __future__ import annotations

import asyncio
import random

from distributed_training.catch_up import CatchUp
from distributed_training.engine.engine import Engine
from distributed_training.engine.records import records_hash
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import Trained
from distributed_training.keeper import Keeper
from distributed_training.miner.fallback import Fallback
from distributed_training.node import ChainView, EndedRound, Node
from distributed_training.peers import Census, validators_of
from distributed_training.protocol import NO_SUCH_EPOCH, NOT_YET, Train, TrainResponse
from distributed_training.run import RunSpec
from distributed_training.schedule import View
from template.clock import Clock
from template.errors import Refused, StateError
from template.neuron import together
from template.telemetry import Telemetry
from template.transport.axon import Axon
from template.transport.policy import Caller

TICK_SECONDS = 2.0
CENSUS_SECONDS = 5.0
CHECKPOINT_SECONDS = 30.0
ASKED_MINERS = 16


class Miner:
    """Composed of the parts it is given; opens and closes nothing itself."""

    def __init__(
        self,
        *,
        spec: RunSpec,
        chain: ChainView,
        node: Node,
        engine: Engine,
        worker: TrainingWorker,
        keeper: Keeper,
        census: Census,
        catch_up: CatchUp,
        fallback: Fallback,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._spec = spec
        self._chain = chain
        self._node = node
        self._engine = engine
        self._worker = worker
        self._keeper = keeper
        self._census = census
        self._catch_up = catch_up
        self._fallback = fallback
        self._telemetry = telemetry
        self._clock = clock
        self._new_state = asyncio.Event()

    def attach(self, axon: Axon) -> None:
        """Serve all three synapses."""
        self._node.attach(axon, self.on_ended)
        axon.attach(Train, self.report, validators_only=True)

    async def report(self, request: Train, caller: Caller) -> TrainResponse:
        """The records of an epoch that ended a short while ago.

        Nobody can read records before this miner has bound itself to them in the epoch's round: whoever would copy
        them has stood by its own by then.

        Raises:
            Refused: the epoch's records are not kept (any more), it lies in the future, or it is not over yet.
        """
        self._node.hear(caller.uid)
        try:
            work = self._engine.work_of(request.epoch)
        except StateError as error:
            raise Refused(str(error), status=404, reason=NO_SUCH_EPOCH) from error
        if work.epoch == self._engine.epoch:
            raise Refused(f"epoch {work.epoch} is not over: its records are not shown", status=409, reason=NOT_YET)
        records = work.records
        return TrainResponse(
            epoch=request.epoch,
            state_hash=work.state_hash,
            base_hash=work.base_hash,
            records_hash=await asyncio.to_thread(records_hash, records, work.marks),
            total_records=len(records),
            records=records[request.offset : request.offset + request.limit],
            mean_loss=work.mean_loss,
            samples=work.samples,
            seconds=work.seconds,
            batch_size=self._spec.data.pages_per_micro_batch,
            marks=() if request.offset else work.marks,
        )

    async def run(self) -> None:
        """Train until cancelled. The training itself runs in the worker's thread.

        Raises:
            SubnetError: the training ended, or the hotkey lost its uid.
        """
        await self._worker.resume()
        await together(
            self._worker.watch(),
            self._tell_progress(),
            self._keep_new_states(),
            self._keep_progress(),
            self._stay_in_step(),
        )

    def on_ended(self, done: EndedRound) -> None:
        """Called by the node after each round. A new state is kept soon, for a restart and for late-comers."""
        self._fallback.on_ended(done)
        if done.completed:
            self._new_state.set()

    async def _keep_new_states(self) -> None:
        while True:
            await self._new_state.wait()
            self._new_state.clear()
            await self._keeper.keep()

    async def _keep_progress(self) -> None:
        while True:
            await self._clock.sleep(CHECKPOINT_SECONDS)
            await self._keeper.keep()

    async def _tell_progress(self) -> None:
        told: tuple[int, int, int] | None = None
        while True:
            work, ahead = self._engine.work, self._engine.samples_ahead
            if (work.epoch, work.samples, ahead) != told:
                told = (work.epoch, work.samples, ahead)
                self._telemetry.emit(
                    Trained(
                        uid=self._node.uid,
                        epoch=work.epoch,
                        samples=work.samples,
                        samples_ahead=ahead,
                        mean_loss=work.mean_loss,
                        seconds=work.seconds,
                        idle=self._worker.idle_seconds,
                    )
                )
            await self._clock.sleep(TICK_SECONDS)

    async def _stay_in_step(self) -> None:
        while True:
            metagraph = self._chain.metagraph
            self._node.require_place(metagraph)
            validators = validators_of(metagraph, self._spec.epoch.validator_stake)
            alone = self._fallback.alone
            views = await self._census.ask(metagraph, range(len(metagraph)) if alone else validators, CENSUS_SECONDS)
            if any(view.is_validator for view in views):
                self._node.silence.heard()
            if alone:
                views = (*views, self._node.view())
            if not self._node.in_round:
                in_step = await self._catch_up.check(views, metagraph.stake, len(validators), self._some_miners)
                if in_step and self._fallback.alone:
                    await self._fallback.consider(metagraph, views)
            await self._clock.sleep(TICK_SECONDS)

    async def _some_miners(self) -> tuple[View, ...]:
        """Where a few other miners stand, any of them: they can give a state as well as a validator."""
        metagraph = self._chain.metagraph
        others = set(range(len(metagraph))) - validators_of(metagraph, self._spec.epoch.validator_stake)
        chosen = random.SystemRandom().sample(sorted(others), min(ASKED_MINERS, len(others)))
        return await self._census.ask(metagraph, chosen, CENSUS_SECONDS)
