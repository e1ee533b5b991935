"""Which terms the law needs, and what every other form would cost."""
