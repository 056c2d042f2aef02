"""What operators see: metrics, health, logs, loop latency. Imports neither the hub nor the worker."""
