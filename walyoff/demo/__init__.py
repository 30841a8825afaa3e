"""`walyoff demo`: two devices as two processes of this machine, and what an outsider sees.

`command` is the way in, `story` what happens, `agent` one device's process, `search` the
outsider.
"""
