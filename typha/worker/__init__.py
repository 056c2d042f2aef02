"""A worker: its clients' connections, and what each is sent. It never parses an object."""
