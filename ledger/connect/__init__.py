"""Transports, each an extra: what brings messages to the inbox, and takes them away."""
