"""`python -m walyoff.cli` is `walyoff`."""

from walyoff.cli import main

main()
