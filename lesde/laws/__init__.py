"""The exact law and the moments of the class means, and the rule in numbers that all engines share."""
