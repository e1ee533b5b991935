"""How choices within a limit on time come out, among measured candidates."""
