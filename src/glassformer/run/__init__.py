"""What is on disk: a run is a folder."""
