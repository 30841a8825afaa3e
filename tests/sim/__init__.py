"""Whole devices in virtual time: worlds with crashes, partitions and a member who lies."""
