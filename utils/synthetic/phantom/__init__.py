"""CT-like spines with known labels, for tests and the demonstration, made in three separate steps."""
