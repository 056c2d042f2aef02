"""Stories of the whole."""
