"""Upgraded models on several devices."""
