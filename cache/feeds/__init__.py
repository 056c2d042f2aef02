"""Feeds: convert objects, as they are or to Calico's data model, and make the batches for the log. Pure."""
