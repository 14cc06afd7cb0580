"""Where a network looks: Grad-CAM and Grad-CAM++ of tiles and slides, and whether to trust them."""
