"""The embedded chain: one SQLite file, shared by processes, behind the SDK's `Substrate` protocol.

clock, ledger, state    blocks, the file, the versioned storage
items, codec, calls/    what is stored, what arguments may be, what extrinsics do
yuma, epoch             consensus and payment
reads, runtime_api      what the SDK asks
extrinsics, substrate   what the SDK submits, and the protocol itself
genesis, operator       making and steering a file; `python -m template.chain.local` does both
"""
