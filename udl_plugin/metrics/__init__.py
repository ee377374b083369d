"""How good an uncertainty map is."""
