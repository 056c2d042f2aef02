"""Values in Go's text forms: JSON, regular expressions, durations, quantities, names. Independent of Calico's kinds."""
