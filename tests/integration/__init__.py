"""Tests of the whole system, on a real control plane where this matters."""
