"""A neuron in rounds: what completes moves everybody, what does not changes nothing, and refusals say why."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from distributed_training.averaging.binding import sign_binding
from distributed_training.averaging.leader import equal_shares
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.protocol import AllReduce, AllReduceResponse, IsAlive, IsAliveResponse
from template.errors import NotRegistered, Refused
from template.transport.dendrite import Outcome
from tests.roles import AVERAGING, Subnet, key_of, metagraph_of, subnet


async def send(net: Subnet, request: AllReduce, *, leader: int = 0, to: int = 1) -> Outcome:
    """The request over the wire, to one neuron."""
    target = net.wire.target(to, net.neurons[to].axon.hotkey)
    return await net.neurons[leader].dendrite.call(target, request, 10)


async def everybody(net: Subnet, request: AllReduce) -> list[AllReduceResponse]:
    return await asyncio.gather(*(net.neurons[m.uid].node.take_part(request) for m in request.group))


async def test_a_completed_round_moves_everybody_to_one_state(tmp_path: Path) -> None:
    """Validator and miners: epoch 1, equal hashes, the mean of both gradients weighted by samples."""
    async with subnet(tmp_path) as net:
        await net.train(1, 3)
        await net.train(2, 1)
        one, two = net.neurons[1].engine.contribution(), net.neurons[2].engine.contribution()
        answers = await everybody(net, net.request())
        assert [a.completed for a in answers] == [True] * 3
        assert {(n.engine.epoch, n.engine.state_hash) for n in net.neurons.values()} == {(1, answers[0].state_hash)}
        expected = np.average(
            np.stack([one.vector, two.vector]).astype(np.float64), axis=0, weights=[one.samples, two.samples]
        )
        average = net.neurons[0].ended[0].result.average
        assert average is not None
        np.testing.assert_allclose(average, expected, atol=1e-7)
        assert net.neurons[1].engine.samples == 0
        assert net.neurons[1].told("RoundFinished")[0]["phases"].keys() >= {"CONNECT", "EXCHANGE", "COMMIT"}


@pytest.mark.parametrize(("codec", "low", "high"), [("none", 32.0, 32.5), ("int4-block64", 4.25, 5.0)])
async def test_a_round_tells_what_it_moved(tmp_path: Path, codec: str, low: float, high: float) -> None:
    """Bytes and seconds by peer and direction, what each state and kind of work took, and bits a parameter."""
    coded = dataclasses.replace(AVERAGING, codec=codec, reduction="clip")
    async with subnet(tmp_path, averaging=coded) as net:
        await net.train(1)
        await net.train(2)
        answers = await everybody(net, net.request())
        told = net.neurons[1].told("RoundFinished")[0]
    assert [transfer["uid"] for transfer in told["transfers"]] == [0, 2]
    for transfer in told["transfers"]:
        assert min(transfer["bytes_sent"], transfer["bytes_received"]) > 0
        assert min(transfer["seconds_sending"], transfer["seconds_receiving"]) > 0
    assert told["transfers"] == [transfer.model_dump() for transfer in answers[1].transfers]
    assert sum(transfer["bytes_sent"] for transfer in told["transfers"]) == told["bytes_sent"]
    assert told["work"].keys() == {"encode", "decode", "reduce", "hash", "wait"}
    assert low <= told["bits_per_parameter"] <= high
    assert (told["reference_bits"], told["restrained"]) == (32, [])


async def test_error_feedback_is_settled_by_rounds_that_complete(tmp_path: Path) -> None:
    """In 4 bits: a miner owes what the codec lost, which an aborted round leaves as it is; a validator owes nothing."""
    lossy = dataclasses.replace(AVERAGING, codec="int4-block64", error_feedback=True, connect_seconds=0.5)
    async with subnet(tmp_path, averaging=lossy) as net:
        owed = []
        for taking_part in ((0, 1, 2), (0, 1)):
            await net.train(1)
            await net.train(2)
            request = net.request()
            answers = await asyncio.gather(*(net.neurons[uid].node.take_part(request) for uid in taking_part))
            assert {a.completed for a in answers} == {taking_part == (0, 1, 2)}
            owed.append([net.neurons[uid].engine.snapshot().residual for uid in range(3)])
        assert [vector is not None and bool(vector.any()) for vector in owed[0]] == [False, True, True]
        assert all(before is after for before, after in zip(*owed, strict=True))


async def test_a_validator_keeps_what_the_epoch_was_trained_at(tmp_path: Path) -> None:
    """θ of the epoch that ended, for audits; a miner keeps none."""
    async with subnet(tmp_path, miners=1) as net:
        await net.train(1)
        before = net.neurons[0].engine.state.params.copy()
        await everybody(net, net.request())
        base = net.neurons[0].ended[0].bases[net.neurons[0].ended[0].request.state_hash]
        np.testing.assert_array_equal(base, before)
        assert not np.array_equal(base, net.neurons[0].engine.state.params)
        assert not net.neurons[1].ended[0].bases


async def test_an_aborted_round_changes_nothing(tmp_path: Path) -> None:
    """A member that never comes: epoch, hash and accumulated work stay, and training goes on from there."""
    short = dataclasses.replace(AVERAGING, connect_seconds=0.3)
    async with subnet(tmp_path, averaging=short) as net:
        await net.train(1)
        await net.train(2)
        miner = net.neurons[1]
        state, work, gradient = miner.state, miner.engine.work, miner.engine.contribution().vector
        request = net.request()
        answers = await asyncio.gather(*(net.neurons[uid].node.take_part(request) for uid in (0, 1)))
        assert [a.completed for a in answers] == [False, False]
        assert [f.uid for f in answers[1].failures] == [2]
        assert (miner.state, miner.engine.work) == (state, work)
        np.testing.assert_array_equal(miner.engine.contribution().vector, gradient)
        await net.train(1, 1, first=2)
        assert miner.engine.samples > work.samples
        assert not miner.ended[0].completed


async def test_every_refusal_of_a_state_arrives_with_its_word(tmp_path: Path) -> None:
    """Another epoch, another hash, nothing trained: the leader learns which; the miner stays where it is."""
    async with subnet(tmp_path) as net:
        await net.train(2)
        request = net.request()
        elsewhere = request.model_copy(update={"state_hash": "f" * 64})
        later = request.model_copy(update={"epoch": 1})
        assert [(await send(net, r, to=2)).reason for r in (elsewhere, later)] == ["other_state"] * 2
        assert (await send(net, request, to=1)).reason == "bad_group"  # uid 1 has trained nothing: it is not in it
        told = net.neurons[2].told("RoundRefused")
        assert [event["reason"] for event in told] == ["other_state"] * 2


async def test_who_has_trained_nothing_refuses_to_contribute(tmp_path: Path) -> None:
    """And goes on training afterwards."""
    async with subnet(tmp_path) as net:
        await net.train(1)
        await net.train(2)
        request = net.request()
        await net.neurons[1].worker.run(lambda engine: engine.apply(np.zeros(engine.layout.size, np.float32)))
        behind = request.model_copy(update={"epoch": 1, "state_hash": net.neurons[1].engine.state_hash})
        assert (await send(net, behind)).reason == "nothing_to_give"


async def test_a_validator_whose_turn_it_is_not_is_refused(tmp_path: Path) -> None:
    """The turn follows from the chain, whatever the request says."""
    async with subnet(tmp_path, miners=1, validators=3) as net:
        await net.train(3)
        net.chain.block = 5  # turn 1, and turn 0 is still accepted: uid 2's turn is the next one
        assert (await send(net, net.request(), leader=2, to=3)).reason == "not_the_leader"
        assert net.neurons[3].told("RoundRefused")[0]["leader"] == 2


async def test_a_miner_cannot_start_a_round(tmp_path: Path) -> None:
    """The axon lets only validators ask for it."""
    async with subnet(tmp_path) as net:
        await net.train(2)
        assert (await send(net, net.request(), leader=1, to=2)).reason == "no_permit"


async def test_a_second_round_at_the_same_time_is_refused(tmp_path: Path) -> None:
    """Busy, at once; the first one goes on."""
    async with subnet(tmp_path, miners=1) as net:
        await net.train(1)
        request = net.request()
        first = [asyncio.create_task(net.neurons[uid].node.take_part(request)) for uid in (0, 1)]
        await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            await net.neurons[1].node.take_part(net.request())
        assert caught.value.reason == "busy"
        assert [answer.completed for answer in await asyncio.gather(*first)] == [True, True]


@pytest.mark.parametrize(("first_of_both", "ended"), [({3: 0, 4: 0}, {0, 2, 3, 4}), ({3: 0, 4: 1}, set())])
async def test_of_two_leaders_at_once_one_at_most_ends_the_epoch(
    tmp_path: Path, first_of_both: dict[int, int], ended: set[int]
) -> None:
    """Each member is in the round that it heard of first; torn between the two, nobody moves, and the next one may."""
    short = dataclasses.replace(AVERAGING, connect_seconds=1.0, exchange_seconds=2.0, commit_seconds=1.0)
    async with subnet(tmp_path, miners=4, validators=2, averaging=short) as net:
        for uid in (2, 3, 4, 5):
            await net.train(uid)
        everyone = net.request().group
        requests = []
        for uids in ({0, 2, 3, 4}, {1, 3, 4, 5}):
            chosen = [m for m in everyone if m.uid in uids]
            requests.append(net.request(group=equal_shares(chosen, uids)))
        heard = [(0, requests[0]), (1, requests[1]), (2, requests[0]), (5, requests[1])]
        for uid, first in first_of_both.items():
            heard += [(uid, requests[first]), (uid, requests[1 - first])]
        answers = await asyncio.gather(*(net.neurons[u].node.take_part(r) for u, r in heard), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert [r.reason for r in refused if isinstance(r, Refused)] == ["busy"] * 2 == ["busy"] * len(refused)
        assert {uid for uid, neuron in net.neurons.items() if neuron.engine.epoch == 1} == ended
        assert len({net.neurons[uid].engine.state_hash for uid in ended}) == bool(ended)
        if not ended:
            assert all(answer.completed for answer in await everybody(net, net.request()))


async def test_training_is_resumed_on_every_way_out(tmp_path: Path) -> None:
    """Completed, aborted, refused, or cancelled in the middle."""
    short = dataclasses.replace(AVERAGING, connect_seconds=1.0)
    async with subnet(tmp_path, miners=1, averaging=short) as net:
        miner = net.neurons[1]

        def paused() -> bool:
            return miner.worker._paused

        await net.train(1)
        await everybody(net, net.request())
        assert not paused()
        await net.train(1)
        await miner.worker.pause()
        assert not (await miner.node.take_part(net.request())).completed  # alone: the validator never comes
        assert not paused()
        with pytest.raises(Refused):
            await miner.node.take_part(net.request(codec="float16"))
        assert not paused()
        task = asyncio.create_task(miner.node.take_part(net.request()))
        await asyncio.sleep(0.1)
        assert paused()
        task.cancel()
        await asyncio.wait({task})
        assert not paused()


async def test_an_impossible_round_is_refused(tmp_path: Path) -> None:
    """Two members with one peer id: each is bound by a signature, but nobody could run it."""
    async with subnet(tmp_path) as net:
        await net.train(1)
        await net.train(2)
        good = net.request()
        stolen = sign_binding(key_of(2), net.spec.run_id, "peer1", ("/memory",))
        group = (*good.group[:2], good.group[2].model_copy(update={"peer": stolen}))
        with pytest.raises(Refused) as caught:
            await net.neurons[1].node.take_part(good.model_copy(update={"group": group}))
        assert caught.value.reason == "impossible_round"


async def test_who_trained_more_than_one_may_weigh_takes_part(tmp_path: Path) -> None:
    """It weighs what it may; refusing would lock a lone miner out for ever."""
    low = dataclasses.replace(AVERAGING, max_weight=1.0)
    async with subnet(tmp_path, miners=1, averaging=low) as net:
        await net.train(1)
        answers = await everybody(net, net.request())
        assert [a.completed for a in answers] == [True, True]
        assert answers[1].samples > 1
        assert net.neurons[0].ended[0].result.outcome.total_weight == 1.0


async def test_who_is_only_asked_to_reduce_contributes_nothing(tmp_path: Path) -> None:
    """A staked miner that had no samples yet when the leader looked, and has some now."""
    async with subnet(tmp_path, miners=2) as net:
        staked = metagraph_of(3, (0, 1))
        await net.train(2)
        net.chain.metagraph = staked
        request = net.request()
        assert [(m.uid, m.contributes) for m in request.group] == [(0, False), (1, False), (2, True)]
        await net.train(1)
        answers = await everybody(net, request)
        assert [a.completed for a in answers] == [True] * 3
        assert net.neurons[0].ended[0].result.outcome.participants == (2,)


class Poisonous(Engine):
    """Its average cannot be applied."""

    def contribution(self) -> Contribution:
        honest = super().contribution()
        return Contribution(np.full_like(honest.vector, np.nan), honest.samples, honest.records)


async def test_a_contribution_that_is_not_finite_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    """Our own bug or broken memory: nobody else is troubled, nothing changes."""
    async with subnet(tmp_path, miners=1) as net:
        await net.train(1)
        miner = net.neurons[1]
        miner.engine.__class__ = Poisonous
        before = miner.state
        with pytest.raises(Refused) as caught:
            await miner.node.take_part(net.request())
        assert caught.value.reason == "impossible_round"
        assert miner.state == before


async def test_where_a_neuron_stands_is_said_as_one(tmp_path: Path) -> None:
    """Epoch and hash belong together, while the training thread ends epoch after epoch."""
    async with subnet(tmp_path, miners=1) as net:
        miner = net.neurons[1]
        seen = {}

        def end_epochs(engine: Engine) -> None:
            for _ in range(20):
                engine.apply(np.ones(engine.layout.size, np.float32))

        running = asyncio.create_task(miner.worker.run(end_epochs))
        while not running.done():
            status = miner.node.status()
            assert seen.setdefault(status.epoch, status.state_hash) == status.state_hash
            await asyncio.sleep(0)
        await running


async def test_anybody_registered_learns_where_we_stand(tmp_path: Path) -> None:
    """Corpus, binding and version come along."""
    async with subnet(tmp_path) as net:
        target = net.wire.target(2, net.neurons[2].axon.hotkey)
        outcome = await net.neurons[1].dendrite.call(target, IsAlive(run_id=net.spec.run_id), 5)
        answer = outcome.expect(IsAliveResponse)
        assert (answer.epoch, answer.state_hash) == net.neurons[2].state
        assert (answer.corpus, answer.peer) == (net.loader.fingerprint, net.neurons[2].node.binding)


async def test_a_neuron_that_lost_its_uid_stops_with_a_reason(tmp_path: Path) -> None:
    """Somebody else has the place now: nothing it did would count."""
    async with subnet(tmp_path, miners=1) as net:
        node = net.neurons[1].node
        node.require_place(net.chain.metagraph)
        replaced = dataclasses.replace(metagraph_of(2), hotkeys=(metagraph_of(2).hotkeys[0], "5Other"))
        with pytest.raises(NotRegistered, match="lost uid 1"):
            node.require_place(replaced)
