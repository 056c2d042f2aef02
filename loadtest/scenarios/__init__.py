"""Load test scenarios on a simulated API server; `python -m loadtest run --scenario NAME`."""
