"""The transports that come with walyoff, each found by its entry point."""
