"""One file per table: each has ``TITLE``, ``ABOUT``, ``NOTES`` and ``sections(quick)``."""

TABLES = ("euler", "exact", "sgd", "feature", "metrics", "recording", "training", "scaling", "cuda")
