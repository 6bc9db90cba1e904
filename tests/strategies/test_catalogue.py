"""Every strategy by name: what may be set, what is refused, and that none writes into what it is given."""

from __future__ import annotations

import pytest
import torch

from distributed_training.strategies.base import LocalState
from distributed_training.strategies.catalogue import CATALOGUE, build
from distributed_training.strategies.message import Message, Received
from template.errors import ConfigurationError
from tests.strategies.problem import SPEC, begin, gradient, play

every = pytest.mark.parametrize("name", CATALOGUE)


def bits(state: LocalState) -> dict[str, bytes]:
    tensors = {"": state.params, **state.vectors}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@every
def test_steps_are_pure(name: str) -> None:
    """No step of any strategy changes the state, the gradient or the message that it is given."""
    period = {"period": 1} if "period" in CATALOGUE[name].hyperparameters() else {}
    more = {"fragments": 1, "overlap": 0, "mixing": 0.0} if name == "streaming-diloco" else {}
    strategy = build(name, SPEC, {**period, **more})
    state = begin(strategy, 2)[0]
    g = torch.from_numpy(gradient(0, 0, state.params.numpy()))
    before, given = bits(state), g.numpy().tobytes()
    trained = strategy.local(state, g)
    middle = bits(trained)
    sending, messages = strategy.send(trained)
    after = bits(sending)
    for message in messages:
        received = Received(message.operation, (values_of(message), values_of(message)))
        copies = [value.numpy().tobytes() for value in received.values]
        strategy.receive(sending, received)
        assert [value.numpy().tobytes() for value in received.values] == copies
    assert (bits(state), g.numpy().tobytes(), bits(trained), bits(sending)) == (before, given, middle, after)


def values_of(message: Message) -> torch.Tensor:
    return torch.linspace(-1, 1, message.count)


@every
def test_the_same_run_gives_the_same_bits(name: str) -> None:
    """Of all nodes, after six steps."""
    strategy = build(name, SPEC, {"period": 3} if "period" in CATALOGUE[name].hyperparameters() else {})
    first, second = (play(strategy, 2, 6) for _ in range(2))
    assert [bits(state) for state in first[0]] == [bits(state) for state in second[0]]
    assert first[1] == second[1]


def test_unknown_names_are_told_the_known_ones() -> None:
    """Of strategies and of hyper-parameters."""
    with pytest.raises(ConfigurationError, match="unknown strategy 'dilocco'; known: apart, ddp"):
        build("dilocco", SPEC, {})
    with pytest.raises(ConfigurationError, match="did you mean 'period'"):
        build("diloco", SPEC, {"perod": 3})
    with pytest.raises(ConfigurationError, match="it has none"):
        build("ddp", SPEC, {"period": 3})


@pytest.mark.parametrize("value", ["soon", "1.5", 1.5, True])
def test_a_value_of_another_type_is_refused(value: str | float | bool) -> None:
    """Steps are whole numbers."""
    with pytest.raises(ConfigurationError, match="period must be of type int"):
        build("diloco", SPEC, {"period": value})


def test_text_is_converted() -> None:
    """As the command line gives it; whole numbers serve as others."""
    strategy = build("diloco", SPEC, {"period": "30", "outer_momentum": "0.8", "outer_learning_rate": 1})
    assert vars(strategy) | {"inner": None} == {
        "inner": None,
        "period": 30,
        "outer_learning_rate": 1.0,
        "outer_momentum": 0.8,
        "codec": "none",
        "feedback": 0.0,
    }


def test_presets_are_what_they_are_called() -> None:
    """2 and 4 bits with the whole error fed back."""
    for name, bits_of in (("diloco-int2", "int2"), ("muloco-int2", "int2"), ("diloco-int4", "int4")):
        settings = CATALOGUE[name].hyperparameters()
        assert str(settings["codec"]).startswith(bits_of)
        assert settings["feedback"] == 1.0
    assert CATALOGUE["sparseloco"].hyperparameters()["feedback"] == 0.95
