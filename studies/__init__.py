"""Studies on public measurements; each is rerun by one command."""
