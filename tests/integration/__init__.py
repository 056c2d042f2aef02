"""Stories of the whole system, on a real control plane where it matters."""
