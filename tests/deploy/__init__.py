"""Tests of deploy/: the chart, the manifests and what is in them."""
