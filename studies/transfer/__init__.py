"""Which datasheet number scales which coefficient, from one GPU type to another."""
