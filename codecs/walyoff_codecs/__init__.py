"""First-party cipher suites, found through the `walyoff.suites` entry points.

Nothing is imported here: a suite is loaded when it is asked for by name.
"""
