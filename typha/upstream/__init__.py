"""A replica that another replica feeds in place of the API server: whom it follows, and how."""
