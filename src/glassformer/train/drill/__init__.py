"""A rehearsal of disasters: train a short copy of a recipe undisturbed and disturbed, and compare to the bit."""
