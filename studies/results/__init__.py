"""The tables of docs/results.md and README.md, from public measurements."""
