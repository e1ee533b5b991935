"""Energy and latency under load: the closed form against a simulation in time."""
