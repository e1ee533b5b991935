"""The judge: who is fitted to what, what is asked, and how it is marked."""
