"""Drivers that wrap drivers."""
