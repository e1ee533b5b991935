"""A measuring campaign for a GPU that can be had for minutes at a time."""
