"""The subnet kit: chain, wire, configuration and lifecycle. Knows nothing of training and imports without torch."""
