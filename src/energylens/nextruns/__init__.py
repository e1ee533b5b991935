"""Which runs to measure next, and when to stop."""
