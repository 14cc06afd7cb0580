"""Which concepts a layer holds: regression concept vectors, TCAV and Br."""
