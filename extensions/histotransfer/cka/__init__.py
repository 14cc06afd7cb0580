"""Centred kernel alignment: how alike what two networks make of the same tiles is."""
