"""Words -> ids -> batches. No torch here: reports and tokenising start at once."""
