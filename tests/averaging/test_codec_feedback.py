"""Error feedback: nothing is lost over many rounds, failed rounds change nothing, and it trains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.averaging.codecs.codec import Floats
from distributed_training.averaging.codecs.registry import codec_named, pair_named
from distributed_training.averaging.feedback import Attempt, ErrorFeedback, encode_with_error
from distributed_training.averaging.partition import chunks
from template.errors import AveragingError, CorruptState

LOSSY = ["fp16", "bf16", "int8-block256", "int4-block64", "int2-block64", "topk32-int2-block64", "topk4-fp16"]


def normal(n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(n, dtype=np.float32)


def send(attempt: Attempt, name: str, values: Floats, piece: int) -> Floats:
    """What arrives of `values`, sent in pieces."""
    codec, arrived = codec_named(name), np.empty_like(values)
    for start, stop in chunks(values.size, piece):
        data = attempt.encode(codec, start, values[start:stop])
        codec.decode(data, stop - start, arrived[start:stop])
    return arrived


@pytest.mark.parametrize("name", LOSSY)
@settings(max_examples=6)
@given(n=st.integers(1, 700), rounds=st.integers(1, 20), seed=st.integers(0, 1000))
def test_what_was_sent_and_what_is_owed_is_what_was_contributed(name: str, n: int, rounds: int, seed: int) -> None:
    """Summed over the rounds, however the vector is cut in each, to float32 rounding."""
    feedback, sent, given_ = ErrorFeedback(n), np.zeros(n), np.zeros(n)
    for number in range(rounds):
        values, attempt = normal(n, seed + number), feedback.attempt()
        sent += send(attempt, name, values, 1 + (97 * number + seed) % n)
        given_ += values
        feedback.commit(attempt)
    largest = 5 + np.abs(feedback.residual).max()
    assert np.abs(sent + feedback.residual - given_).max() <= rounds * 2**-23 * 2 * largest


@pytest.mark.parametrize("name", LOSSY)
def test_the_residual_stays_bounded(name: str) -> None:
    """The same contribution for ever: everything is sent in the end, so the mean of what was sent comes close."""
    values, feedback, sent, norms = normal(3000, 1), ErrorFeedback(3000), np.zeros(3000), []
    for _ in range(200):
        attempt = feedback.attempt()
        sent += send(attempt, name, values, 1024)
        feedback.commit(attempt)
        norms.append(float(np.linalg.norm(feedback.residual)))
    assert max(norms[150:]) <= 1.1 * max(norms[:150])
    assert np.linalg.norm(sent / 200 - values) <= 0.2 * np.linalg.norm(values)
    assert np.linalg.norm(sent / 200 - values) <= np.linalg.norm(
        send(ErrorFeedback(3000).attempt(), name, values, 1024) - values
    )


def test_a_failed_round_changes_nothing() -> None:
    """The next attempt sends the same bytes; so does the same piece again."""
    codec, feedback = codec_named("int4-block64"), ErrorFeedback(300)
    before = feedback.attempt()
    before.encode(codec, 0, normal(300, 1))
    feedback.commit(before)
    residual, failed, again = feedback.residual.copy(), feedback.attempt(), feedback.attempt()
    first = bytes(failed.encode(codec, 100, normal(200, 2)))
    assert bytes(failed.encode(codec, 100, normal(200, 2))) == first
    np.testing.assert_array_equal(feedback.residual, residual)
    assert bytes(again.encode(codec, 100, normal(200, 2))) == first
    assert first != bytes(codec.encode(normal(200, 2)))


def test_only_what_was_sent_is_settled() -> None:
    """Pieces of the vector that an attempt did not touch keep what they owe; our own share owes nothing."""
    codec, feedback = codec_named("int2-block64"), ErrorFeedback(300)
    attempt = feedback.attempt()
    attempt.encode(codec, 0, normal(300, 1))
    feedback.commit(attempt)
    old, attempt = feedback.residual, feedback.attempt()
    np.testing.assert_array_equal(attempt.whole(0, normal(100, 2), 1e30), normal(100, 2) + old[:100])
    _, error = encode_with_error(codec, normal(100, 3) + old[100:200])
    attempt.encode(codec, 100, normal(100, 3))
    feedback.commit(attempt)
    np.testing.assert_array_equal(feedback.residual, np.concatenate([np.zeros(100), error, old[200:]]))


def test_an_attempt_is_committed_once_and_alone() -> None:
    """Not twice, not after another, and not if it sent the same values in two ways."""
    codec, feedback = codec_named("int4-block64"), ErrorFeedback(100)
    first, second = feedback.attempt(), feedback.attempt()
    feedback.commit(first)
    for stale in (first, second, ErrorFeedback(100).attempt()):
        with pytest.raises(AveragingError, match="older residual"):
            feedback.commit(stale)
    twice = feedback.attempt()
    twice.encode(codec, 0, normal(60, 1))
    twice.encode(codec, 50, normal(50, 1))
    with pytest.raises(AveragingError, match="overlap at 50"):
        feedback.commit(twice)


def test_pieces_outside_the_vector_and_sums_without_a_code_are_refused() -> None:
    """What has no code counts as not sent."""
    codec, feedback = codec_named("fp16"), ErrorFeedback(4)
    for start, size in ((-1, 2), (3, 2), (5, 0)):
        with pytest.raises(AveragingError, match="a piece"):
            feedback.attempt().encode(codec, start, np.zeros(size, dtype=np.float32))
    feedback.load_state_dict({"residual": np.full(4, 10, dtype=np.float32)})
    attempt = feedback.attempt()
    for send_it in (lambda v: attempt.encode(codec, 0, v), lambda v: attempt.whole(0, v, codec.largest)):
        with pytest.raises(AveragingError, match="65504"):
            send_it(np.full(4, 65500, dtype=np.float32))
    feedback.commit(attempt)
    assert (feedback.residual == 10).all()


def test_the_residual_survives_a_restart() -> None:
    """What is loaded goes on with the same bytes; what does not fit is refused, and changes nothing."""
    codec, feedback = codec_named("int4-block64"), ErrorFeedback(100)
    attempt = feedback.attempt()
    attempt.encode(codec, 0, normal(100, 1))
    feedback.commit(attempt)
    other = ErrorFeedback(100)
    other.load_state_dict({key: value.copy() for key, value in feedback.state_dict().items()})
    sent = [bytes(f.attempt().encode(codec, 0, normal(100, 2))) for f in (feedback, other)]
    assert sent[0] == sent[1]
    bad = np.full(100, np.nan, dtype=np.float32)
    for state in ({}, {"residual": normal(99, 1)}, {"residual": np.zeros(100)}, {"residual": bad}):
        with pytest.raises(CorruptState):
            other.load_state_dict(state)
    np.testing.assert_array_equal(other.residual, feedback.residual)
    other.clear()
    assert not other.residual.any()


def _train(name: str, *, feedback: bool, peers: int = 8, updates: int = 100) -> float:
    """Loss above the optimum of least squares after some updates of 8 peers, each with its own 64 of 512 rows."""
    random = np.random.default_rng(5)
    scales = np.logspace(-1.5, 0, 200)
    rows = random.standard_normal((peers, 64, 200)) * scales
    target = rows @ random.standard_normal(200) + 0.5 * random.standard_normal((peers, 64))
    weights, keepers, codecs = np.zeros(200), [ErrorFeedback(200) for _ in range(peers)], pair_named(name)
    for _ in range(updates):
        parts = []
        for keeper, x, y in zip(keepers, rows, target, strict=True):
            gradient = (x.T @ (x @ weights - y) / len(y)).astype(np.float32)
            attempt = keeper.attempt() if feedback else ErrorFeedback(200).attempt()
            parts.append(codecs.parts.decode(attempt.encode(codecs.parts, 0, gradient), 200))
            if feedback:
                keeper.commit(attempt)
        average = np.mean(parts, axis=0, dtype=np.float64).astype(np.float32)
        weights = weights - 0.2 * codecs.average.decode(codecs.average.encode(average), 200)
    return float(np.mean((rows @ weights - target) ** 2))


@pytest.mark.parametrize(
    ("name", "allowed"), [("int8-block256", 0.001), ("int4-block64", 0.01), ("int2-block64+int4-block64", 0.02)]
)
def test_training_with_feedback_is_close_to_training_without_loss(name: str, allowed: float) -> None:
    """Least squares, 8 peers, 100 updates; without feedback it is no better."""
    exact, kept, dropped = _train("none", feedback=False), _train(name, feedback=True), _train(name, feedback=False)
    assert abs(kept / exact - 1) <= allowed
    assert abs(kept - exact) <= abs(dropped - exact)
