"""The simulated subnet: its time, its model, its wires and its rounds do what the real ones do."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch.nn import functional

from distributed_training.averaging.codec import Floats
from distributed_training.averaging.outcome import RoundResult
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.witness import Watch
from distributed_training.protocol import IsAlive
from distributed_training.scoring.explain import EpochScored
from template.errors import AveragingError, DeadlineExceeded, Refused, Unreachable
from template.transport.dendrite import DEADLINE, UNREACHABLE, Target
from template.transport.policy import Caller
from tests.adversaries.rounds import Framer, NeverComes, Unchecked, Withholder
from tests.adversaries.subnet import virtual
from tests.adversaries.subnet.chain import OWNER, Chain
from tests.adversaries.subnet.corpus import loader_of
from tests.adversaries.subnet.hall import Hall, Line, MemoryAverager
from tests.adversaries.subnet.model import WIDTH, SmallReplica
from tests.adversaries.subnet.subnet import Scenario, simulate, spec_of
from tests.adversaries.subnet.wire import Axon, Dendrite, Wire
from tests.averaging.groups import contributions, make_plan, memory_group, weights

FAST = 1e9  # bytes a second
PAID_AT_ONCE = {"scoring": {"held_epochs": 0}}
SMALL = Scenario(miners=5, epochs=6, measure_every=3, changes=PAID_AT_ONCE)


def test_an_hour_passes_at_once_and_in_order() -> None:
    """Sleepers wake at their own time, and nothing is waited for."""

    async def sleepers() -> list[tuple[str, float]]:
        woken: list[tuple[str, float]] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append((name, asyncio.get_running_loop().time()))

        async with asyncio.timeout(4000):
            await asyncio.gather(sleeper("late", 3600), sleeper("early", 60))
        return woken

    assert virtual.run(sleepers()) == [("early", 60.0), ("late", 3600.0)]


def test_a_thread_is_done_before_anything_else() -> None:
    """Also one that fails, and in the loop's own thread."""

    async def threads() -> tuple[int, float]:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return await asyncio.to_thread(lambda: 7), asyncio.get_running_loop().time()

    assert virtual.run(threads()) == (7, 0.0)


def test_waiting_for_nothing_is_an_error() -> None:
    """Where every task waits for another the simulation says so, instead of hanging."""

    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing can happen"):
        virtual.run(forever())


def test_the_model_has_the_gradient_that_torch_finds() -> None:
    """Loss and gradient against autograd on the same parameters, up to the noise between machines."""
    spec = spec_of(SMALL)
    loader = loader_of(spec, 4096)
    size = loader.tokenizer.vocab_size
    replica, batch = SmallReplica(spec, size), loader.micro_batch(0, 3, 1)
    random = np.random.default_rng(0)
    params = random.normal(0, 0.1, replica.layout.size).astype(np.float32)
    replica.load(params)
    loss, gradient = replica.gradient(batch)
    vector = torch.tensor(params, requires_grad=True)
    ordered = vector[torch.from_numpy(replica._places)]
    bias, head, wte = (ordered[tensor.slice].reshape(tensor.shape) for tensor in replica.layout.tensors)
    logits = wte[torch.from_numpy(batch.input_ids).flatten()] @ head.T + bias
    expected = functional.cross_entropy(logits, torch.from_numpy(batch.labels).flatten())
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert vector.grad is not None
    torch.testing.assert_close(gradient, vector.grad, rtol=1e-3, atol=1e-7)
    assert gradient.numel() == size * (2 * WIDTH + 1)


async def both(
    plan: RoundPlan, values: Mapping[int, Floats | None], lines: Mapping[int, Line], watch: Watch | None = None
) -> dict[int, RoundResult]:
    """The round in the hall; members without a line are honest."""
    hall, by = Hall(), weights(plan)
    averagers = {m.uid: MemoryAverager(hall, m.uid, lines.get(m.uid, Line(FAST))) for m in plan.members}
    results = await asyncio.gather(
        *(a.run(plan, values[u], by[u], records=f"{u}" * 64, watch=watch) for u, a in averagers.items())
    )
    return dict(zip(averagers, results, strict=True))


@pytest.mark.parametrize("rule", ["mean", "clip1.5"])
async def test_a_round_in_the_hall_is_a_round(rule: str) -> None:
    """The same average to the bit, restraints, participants and sightings as the real averagers in memory have."""
    async with memory_group(4) as (group, _):
        plan = make_plan(group.members(auxiliary=(0,)), 4000, reduction=rule)
        values, by, watch = contributions(plan), weights(plan), Watch(np.arange(0, 4000, 50), 64, 7)
        assert values[2] is not None
        values[2] *= 3
        real = await asyncio.gather(
            *(a.run(plan, values[u], by[u], records=f"{u}" * 64, watch=watch) for u, a in group.averagers.items())
        )
    hall = await asyncio.to_thread(virtual.run, both(plan, values, {}, watch))
    for uid, expected in enumerate(real):
        found = hall[uid]
        assert found.average is not None
        assert expected.average is not None
        assert found.average.tobytes() == expected.average.tobytes()
        for name in ("participants", "agreed", "weights", "restrained"):
            assert getattr(found.outcome, name) == getattr(expected.outcome, name), name
        seen, wanted = found.outcome.sightings, expected.outcome.sightings
        assert seen is not None
        assert wanted is not None
        assert seen.drawn.tolist() == wanted.drawn.tolist()
        assert seen.by_uid.keys() == wanted.by_uid.keys() == set(plan.contributors) - {uid}
        assert all((seen.by_uid[u].drawn == part.drawn).all() for u, part in wanted.by_uid.items())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_who_sends_what_is_not_finite_is_named_by_every_reducer(value: float) -> None:
    """As in tests/averaging/test_round.py; nobody has an average then, and the round ends long before its deadline."""
    plan, values = plan_of(4)
    assert values[2] is not None
    values[2][::7] = value
    results = virtual.run(both(plan, values, {2: Unchecked(FAST)}))
    assert all(result.average is None for result in results.values())
    assert named(results) == {0: {2}, 1: {2}, 2: set(), 3: {2}}
    with pytest.raises(AveragingError, match="NaN"):
        virtual.run(both(plan, values, {}))


def test_who_withholds_or_does_not_come_is_named_when_time_is_up() -> None:
    """A part that is missing by every reducer, a member that is missing by everybody who came."""
    plan, values = plan_of(4)
    withheld = virtual.run(both(plan, values, {3: Withholder(FAST)}))
    assert named(withheld) == {0: {3}, 1: {3}, 2: {3}, 3: set()}
    assert {f.role for r in withheld.values() for f in r.outcome.failures} == {"sender"}
    absent = virtual.run(both(plan, values, {3: NeverComes(FAST)}))
    assert named(absent) == {0: {3}, 1: {3}, 2: {3}, 3: set()}
    assert {f.state for r in absent.values() for f in r.outcome.failures} == {"CONNECT"}


def test_an_accusation_is_told_by_the_accuser_alone() -> None:
    """The others saw nothing: the round is lost, and one word stands against another."""
    plan, values = plan_of(4)
    results = virtual.run(both(plan, values, {1: Framer(FAST, victims=(2,))}))
    assert named(results) == {0: set(), 1: {2}, 2: set(), 3: set()}


def plan_of(n: int) -> tuple[RoundPlan, dict[int, Floats | None]]:
    """A round of contributors, and what each puts in."""

    async def made() -> RoundPlan:
        async with memory_group(n) as (group, _):
            return make_plan(group.members(), 4000)

    plan = asyncio.run(made())
    return plan, contributions(plan)


def named(results: Mapping[int, RoundResult]) -> dict[int, set[int]]:
    """Whom each member names."""
    return {uid: {failure.uid for failure in result.outcome.failures} for uid, result in results.items()}


def test_the_wire_refuses_and_times_out() -> None:
    """Who is no validator is refused, who hangs is given up at the deadline, who is cut off cannot be reached."""

    async def asked() -> list[object]:
        wire, request = Wire(), IsAlive(run_id="r")

        async def hang(message: IsAlive, caller: Caller) -> None:
            await asyncio.sleep(100)

        for uid, validators_only in ((1, True), (2, False), (3, False)):
            wire.axons[uid] = Axon(lambda _: False)
            wire.axons[uid].attach(IsAlive, hang, validators_only=validators_only)  # type: ignore[arg-type]
        wire.cut.add(3)
        dendrite = Dendrite(wire, Caller(9, "hotkey"))
        targets = [Target(uid, "", "", 1) for uid in (1, 2, 3)]
        outcomes = (await dendrite.broadcast(targets, request, 10.0)).values()
        return [(type(o.error), o.reason, o.seconds) for o in outcomes]

    assert virtual.run(asked()) == [
        (Refused, "not_a_validator", 0.0),
        (DeadlineExceeded, DEADLINE, 10.0),
        (Unreachable, UNREACHABLE, 0.0),
    ]


def test_the_chain_pays_by_weight() -> None:
    """Two validators that agree on 3 to 1: the miners are paid so, and the validators alike."""

    async def paid() -> Chain:
        chain = Chain([f"hotkey{uid}" for uid in range(5)], [1, 2], {1: 100.0, 2: 100.0})
        task = asyncio.create_task(chain.run())
        await asyncio.sleep(1)
        for uid in (1, 2):
            chain.set_weights(uid, {3: 0.75, 4: 0.25})
        await asyncio.sleep(50)
        task.cancel()
        return chain

    chain = virtual.run(paid())
    assert len(chain.paid) == 2
    assert chain.paid[-1].incentive == pytest.approx((0, 0, 0, 0.75, 0.25), abs=1e-4)
    assert chain.paid[-1].dividends == pytest.approx((0, 0.5, 0.5, 0, 0), abs=1e-4)
    assert chain.metagraph.owner_uid == OWNER


@pytest.mark.timeout(300)
def test_a_run_repeats_itself_to_the_bit_and_learns() -> None:
    """Two runs of one scenario agree in every number; another seed gives another run; everybody honest is paid."""
    first, second = simulate(SMALL), simulate(SMALL)
    assert first.losses == second.losses
    assert first.paid == second.paid
    assert first.told(1, EpochScored) == second.told(1, EpochScored)
    other = simulate(dataclasses.replace(SMALL, seed=1))
    assert other.losses != first.losses
    assert first.epochs == SMALL.epochs
    assert first.losses[6] < first.losses[3] < first.losses[0]
    assert all(first.pay(uid) > 0 for uid in SMALL.miner_uids)
