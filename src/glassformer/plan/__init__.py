"""What a run will cost, before spending. Arithmetic alone: no torch in this room."""
