"""How Go writes values: JSON, regular expressions, durations, quantities, names. Nothing here knows Calico's kinds."""
