"""Tests of the BGP agent."""
