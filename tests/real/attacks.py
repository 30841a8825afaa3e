"""What no honest device does. Each is done by a real member with its real keys."""
