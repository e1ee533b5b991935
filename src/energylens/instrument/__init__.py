"""The instrument: engines, meters, and the protocol that makes rows of them."""
