"""Measurements for users: `walyoff bench NAME`, and the parts that `benchmarks/` builds on.

`registry` names what can be measured; each measurement is a module of its own with a
function `measure`. Devices run as processes (`agent`), and beside them, in the same run and
alternating, what they are compared with (`raw`). Nothing in the library imports this package.
"""
