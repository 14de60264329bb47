"""Long measurements, each a command; the numbers in README and docs come from here."""
