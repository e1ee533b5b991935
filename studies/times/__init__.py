"""How well the time law foretells seconds of full batches, on public rows."""
