"""What a run shows: samples, the live dashboard, the report."""
