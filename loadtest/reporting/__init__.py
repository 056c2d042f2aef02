"""What a run shows: samples while it runs, the live dashboard, the report."""
