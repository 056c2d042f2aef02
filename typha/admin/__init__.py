"""What operators ask a running service: who is connected, what the feeds hold, why an object is absent."""
