"""A subnet of hundreds of neurons in one process, in simulated time: hundreds of epochs in minutes.

What decides is the product's own code, unchanged: `Miner`, `Validator`, `Node`, `Census`, `CatchUp.check`,
`RoundLeader`, `AuditDesk`, `Paymaster`, `Engine`, `Auditor`, `Reducer` and its rules, `schedule`, `scoring` and Yuma.

What is replaced, and by what:

| part | here |
|---|---|
| time | an event loop that jumps to the next thing that is due (`virtual.py`) |
| model | a log-bilinear model of pairs of tokens with exact gradients in numpy (`model.py`) |
| corpus | text of a random Markov chain, in memory (`corpus.py`) |
| axon, dendrite | a request is a call of the handler; permits and deadlines hold, there are no bytes (`wire.py`) |
| libp2p | parts and averages change hands in memory, at the speed of the members' lines (`hall.py`) |
| chain | registrations, blocks, weights and Yuma in memory (`chain.py`) |
| hub, checkpoints | none: who fell behind takes the state from who has it (`neurons.py`) |

Everything is drawn from the seed, so a run repeats itself to the bit.
"""
