"""What each extension of the formula is worth, source by source."""
