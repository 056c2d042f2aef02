"""What would go wrong if the service started here and now: `typha check` asks, and changes nothing."""
