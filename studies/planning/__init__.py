"""Replay measurements in the order that planning, or chance, would have made them."""
