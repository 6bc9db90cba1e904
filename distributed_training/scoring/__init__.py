"""What a validator pays for: audits, steps, bandwidth and participation, combined into weights that can be explained.

Pure functions over frozen tables. Nothing here reads a file, a socket, a clock or the chain.
"""
