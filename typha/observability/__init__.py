"""What operators see: metrics, health, logs, loop latency. Knows neither hub nor worker."""
