"""Peer-to-peer encrypted, authenticated messages for every device of a Walytis Identity."""
