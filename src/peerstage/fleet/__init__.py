"""Fleets: check, stage and mark all peers of a plan, several at a time, and keep a record of every run."""
