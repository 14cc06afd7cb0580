"""A model without weights: the mean, the spread and the roughness of each colour of a tile."""

from tiaft_plugin import hookimpl


@hookimpl
def register_models(register):
    register("colour-texture", load, tile_size=224, mpp=0.5)


def load():
    import torch  # here, not above: `tiaft --help` need not wait for it

    class ColourTexture(torch.nn.Module):
        def forward(self, tiles):  # uint8 (N, H, W, 3)
            pixels = tiles.float() / 255
            rough = pixels.diff(dim=1).abs().mean(dim=(1, 2))
            return torch.cat([pixels.mean(dim=(1, 2)), pixels.std(dim=(1, 2)), rough], dim=1)

    return ColourTexture().eval()
