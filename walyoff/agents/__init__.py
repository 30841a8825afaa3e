"""Processes that answer, for the demo and the measurements: lines of JSON on stdin and stdout.

A request is `{"n": 1, "do": NAME, ...}`; its answer is `{"n": 1, "ok": true, ...}` or
`{"n": 1, "ok": false, "error": TEXT}`. What a process says by itself is an event, `{"event":
NAME, ...}`, the first of which is "ready". It ends when its stdin ends, so that it never
outlives who started it. What is asked is decided by the demo and the measurements.
"""
