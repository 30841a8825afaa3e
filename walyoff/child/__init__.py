"""What runs inside the child process: Kubo, Walytis, and a small server in front of them.

Nothing here is imported by the parent except `walyoff.child.rpc`, which is pure framing.
"""
