"""SubtensorModule: what validators think of miners, plain and timelocked.

A timelocked commit is kept as on the chain, but cannot be opened: that takes a signature of the drand network, which
the embedded chain has no access to. It expires after `RevealPeriodEpochs`. New subnets therefore start with
commit-reveal off.
"""

from __future__ import annotations

from template.chain.local import neurons, stake
from template.chain.local.codec import U8, U16, U64, Bytes
from template.chain.local.dispatch import Execution, Handlers, require
from template.chain.local.items import SUBTENSOR, mechanism_index
from template.chain.local.items import U16 as U16_MAX

MAX_COMMIT = 5000  # bytes
MAX_UNREVEALED = 10


def set_weights(run: Execution, *, netuid: U16, dests: list[U16], weights: list[U16], version_key: U64) -> None:
    _set(run, netuid, 0, dests, weights, version_key)


def set_mechanism_weights(
    run: Execution, *, netuid: U16, mecid: U8, dests: list[U16], weights: list[U16], version_key: U64
) -> None:
    _set(run, netuid, mecid, dests, weights, version_key)


def commit_timelocked_mechanism_weights(
    run: Execution, *, netuid: U16, mecid: U8, commit: Bytes, reveal_round: U64, commit_reveal_version: U16
) -> None:
    state, hotkey = run.state, run.signer
    _check_mechanism(run, netuid, mecid)
    require(state.get("CommitRevealWeightsEnabled", netuid), "CommitRevealDisabled")
    require(commit_reveal_version == state.get("CommitRevealWeightsVersion"), "IncorrectCommitRevealVersion")
    require(len(commit) // 2 - 1 <= MAX_COMMIT, "CommitPayloadTooLarge")
    uid = _uid(run, netuid)
    index, epoch = mechanism_index(netuid, mecid), state.get("SubnetEpochIndex", netuid)
    require(_may_set_again(run, netuid, index, uid), "CommittingWeightsTooFast")
    queue = state.get("TimelockedWeightCommits", index, epoch)
    require(sum(entry[0] == hotkey for entry in queue) < MAX_UNREVEALED, "TooManyUnrevealedCommits")
    queue.append([hotkey, state.block, commit, reveal_round])
    state.put("TimelockedWeightCommits", index, epoch, value=queue)
    state.put_at("LastUpdate", index, uid, state.block)
    run.emit(SUBTENSOR, "TimelockedWeightsCommitted", [hotkey, index, "0x" + "00" * 32, reveal_round])


def _set(run: Execution, netuid: int, mechid: int, dests: list[int], weights: list[int], version_key: int) -> None:
    state = run.state
    require(netuid != 0, "CanNotSetRootNetworkWeights")
    require(len(dests) == len(weights), "WeightVecNotEqualSize")
    _check_mechanism(run, netuid, mechid)
    require(not state.get("CommitRevealWeightsEnabled", netuid), "CommitRevealEnabled")
    uid = _uid(run, netuid)
    _check_right(run, netuid, uid, dests, version_key)
    index = mechanism_index(netuid, mechid)
    require(_may_set_again(run, netuid, index, uid), "SettingWeightsTooFast")
    _check_targets(run, netuid, uid, dests)
    upscaled = _max_upscale(weights)
    _check_limit(run, netuid, [uid] == dests, upscaled)
    state.put("Weights", index, uid, value=[list(pair) for pair in zip(dests, upscaled, strict=True)])
    state.put_at("LastUpdate", index, uid, state.block)
    run.emit(SUBTENSOR, "WeightsSet", [index, uid])


def _check_mechanism(run: Execution, netuid: int, mechid: int) -> None:
    exists = run.state.get("NetworksAdded", netuid) and mechid < run.state.get("MechanismCountCurrent", netuid)
    require(exists, "MechanismDoesNotExist")


def _uid(run: Execution, netuid: int) -> int:
    uid = neurons.uid_of(run.state, netuid, run.signer)
    require(uid is not None, "HotKeyNotRegisteredInSubNet")
    assert uid is not None
    return uid


def _may_set_again(run: Execution, netuid: int, index: int, uid: int) -> bool:
    last = run.state.vector("LastUpdate", index, uid + 1)[uid]
    return bool(last == 0 or run.state.block - last >= run.state.get("WeightsSetRateLimit", netuid))


def _check_right(run: Execution, netuid: int, uid: int, dests: list[int], version_key: int) -> None:
    """Stake, version and permit; the owner and a single self weight need no permit."""
    state, hotkey = run.state, run.signer
    staked = stake.alpha_of(state, netuid, [hotkey])[0]
    require(staked >= state.get("StakeThreshold"), "NotEnoughStakeToSetWeights")
    wanted = state.get("WeightsVersionKey", netuid)
    require(wanted == 0 or version_key >= wanted, "IncorrectWeightVersionKey")
    permit = state.vector("ValidatorPermit", netuid, uid + 1, False)[uid]
    exempt = dests == [uid] or state.get("SubnetOwnerHotkey", netuid) == hotkey
    require(permit or exempt, "NeuronNoValidatorPermit")


def _check_targets(run: Execution, netuid: int, uid: int, dests: list[int]) -> None:
    count = run.state.get("SubnetworkN", netuid)
    require(len(dests) <= count, "UidsLengthExceedUidsInSubNet")
    require(len(set(dests)) == len(dests), "DuplicateUids")
    require(all(dest < count for dest in dests), "UidVecContainInvalidOne")
    enough = len(dests) >= min(count, run.state.get("MinAllowedWeights", netuid))
    require(enough or dests == [uid], "WeightVecLengthIsLow")


def _max_upscale(weights: list[int]) -> list[int]:
    top = max(weights, default=0)
    return [weight * U16_MAX // top if top else 0 for weight in weights]


def _check_limit(run: Execution, netuid: int, only_self: bool, weights: list[int]) -> None:
    limit = run.state.get("MaxWeightsLimit", netuid)
    fair = max(weights, default=0) * U16_MAX <= limit * sum(weights)
    require(only_self or limit == U16_MAX or fair, "MaxWeightExceeded")


HANDLERS: Handlers = {
    (SUBTENSOR, "set_weights"): set_weights,
    (SUBTENSOR, "set_mechanism_weights"): set_mechanism_weights,
    (SUBTENSOR, "commit_timelocked_mechanism_weights"): commit_timelocked_mechanism_weights,
}
