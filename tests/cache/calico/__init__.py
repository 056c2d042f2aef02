"""Tests of Calico's data model."""
