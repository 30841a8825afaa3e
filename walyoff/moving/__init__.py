"""A device's home as one file: exported to live elsewhere, or backed up."""
