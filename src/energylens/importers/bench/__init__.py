"""Results of benchmark tools: one module for each format."""
