"""Every error this project raises on purpose, in one tree.

    SubnetError
    ├── ConfigurationError      a flag, environment value or run file is wrong; the message names the remedy
    ├── WalletError             a key file is missing or cannot be read
    ├── ChainFault              the chain
    │   ├── ChainUnavailable    no answer, or not a chain
    │   ├── ChainRefused        an extrinsic failed; `.code` is the SDK's error code
    │   └── NotRegistered       the hotkey has no uid on the subnet
    ├── WireError               one neuron talking to another
    │   ├── Unreachable         no connection
    │   ├── DeadlineExceeded    no complete answer in time
    │   ├── Refused             the other side answered with an error status; `.status`, `.reason`
    │   └── BadResponse         the answer is unsigned, wrongly signed, too large or not of the right shape
    ├── DataError               the corpus
    │   ├── CorpusTooSmall      fewer pages than one epoch needs
    │   └── SourceUnavailable   pages cannot be read now
    │       └── SourceBusy      they are being read; ask again
    ├── StateError              model and optimiser state
    │   ├── StateMismatch       the state hash is not the expected one
    │   └── CorruptState        the bytes are not a state of this run
    ├── StrategyError           a training strategy broke off, or did what no strategy may
    │   └── SubmissionError     a stranger's strategy did, in its sandbox; `.reason` is what
    ├── ContestError            the contest of strategies
    │   ├── SubmissionRefused   too large, not Python, or not what was committed; `.reason` is a word
    │   └── RecordMismatch      a record is damaged, or running it again gives something else
    ├── SandboxUnavailable      nothing here can hold a stranger's code; the message names the remedy
    ├── AveragingError          libp2p, DHT and state transfer (a failed round is an outcome, not an error)
    └── HubError                the model hub
        ├── HubUnavailable      retries used up
        ├── NotPublished        the epoch is not there (yet)
        └── TagConflict         the tag exists and holds another model

Foreign exceptions are translated into these where they enter; everything else that escapes is a bug.
"""

from __future__ import annotations


class SubnetError(Exception):
    """Base of all errors below. `str(error)` is one line for a person, saying what to do."""


class ConfigurationError(SubnetError):
    """A flag, an environment value or a run file is wrong."""


class WalletError(SubnetError):
    """A key file is missing or cannot be read."""


class ChainFault(SubnetError):
    """The chain did not do what was asked."""


class ChainUnavailable(ChainFault):
    """The chain does not answer, or what answers is not a chain."""


class ChainRefused(ChainFault):
    """An extrinsic was refused. `code` is the SDK's error code, `name` the pallet's error name."""

    def __init__(self, message: str, *, code: str, name: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.name = name


class NotRegistered(ChainFault):
    """The hotkey has no uid on the subnet."""


class WireError(SubnetError):
    """A neuron could not get an answer from another."""


class Unreachable(WireError):
    """No connection to the other neuron."""


class DeadlineExceeded(WireError):
    """No complete answer before the deadline."""


class Refused(WireError):
    """The other side answered with an error. `status` is the HTTP status, `reason` a machine-readable word."""

    def __init__(self, message: str, *, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class BadResponse(WireError):
    """The answer is unsigned, wrongly signed, too large or malformed."""


class DataError(SubnetError):
    """The corpus."""


class CorpusTooSmall(DataError):
    """The corpus has fewer pages than one epoch can assign."""


class SourceUnavailable(DataError):
    """Pages cannot be read now; nobody's score may change because of it."""


class SourceBusy(SourceUnavailable):
    """Pages are on their way: nothing is wrong yet, ask again."""


class StateError(SubnetError):
    """Model and optimiser state."""


class StateMismatch(StateError):
    """A state hash is not the expected one."""


class CorruptState(StateError):
    """The bytes are not a state of this run."""


class StrategyError(SubnetError):
    """A training strategy broke off, or did what no strategy may: messages that do not fit, numbers out of range."""


class SubmissionError(StrategyError):
    """A submission was stopped. `reason` is a machine-readable word: `failed` (its code raised an error), `ended` (its
    process did), `late`, `output` (too much of it), `answer` (not what the schema allows), `source` (not a submission).
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ContestError(SubnetError):
    """The contest of strategies."""


class SubmissionRefused(ContestError):
    """A submission that cannot take part. `reason` is a machine-readable word."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class RecordMismatch(ContestError):
    """A record of a run is damaged, or running it again gives something else."""


class SandboxUnavailable(SubnetError):
    """Nothing here can hold a stranger's code: it is not run, and that is nobody's fault but this machine's."""


class AveragingError(SubnetError):
    """libp2p, the DHT or a state transfer failed."""


class HubError(SubnetError):
    """The model hub."""


class HubUnavailable(HubError):
    """The hub did not take or give the model within the bounded number of tries."""


class NotPublished(HubError):
    """The hub has no model of that epoch, or not yet."""


class TagConflict(HubError):
    """The tag exists and holds a different model; it is never overwritten."""
