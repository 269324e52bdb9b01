"""Stored bytes of every released version: files are added, never made anew."""
