"""The chain as neurons use it. Start at connect.py; local/ is a whole chain in one file."""
