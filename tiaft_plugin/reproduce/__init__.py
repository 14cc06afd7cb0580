"""The paper's whole chain, for whoever has its data, and a miniature of it on little data."""
