"""Replicas on a Ray cluster: the server that ``ecoserve serve`` runs, behind a router that knows predicted lengths."""
