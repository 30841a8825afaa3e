"""Coverage-guided fuzzing of every decoder and of the machines that do no I/O.

`targets` says what is tried and what must hold, `seeds` where it begins, `run` runs it under
atheris (the extra `fuzz`). The targets are ordinary functions, so a test tries them as well.
"""
