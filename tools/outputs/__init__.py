"""What pages of the documentation print: run again, and set between their fences."""
