"""Feeds: what becomes of objects, raw or by Calico's data model, and the batches that the log takes. Pure."""
