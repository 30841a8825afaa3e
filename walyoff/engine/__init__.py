"""The engine: a reconciler without I/O under a thin driver."""
