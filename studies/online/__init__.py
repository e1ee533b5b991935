"""Policies for a fleet of replicas on two recorded traces, simulated."""
