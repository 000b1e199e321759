"""Every number of a pass, by name."""
