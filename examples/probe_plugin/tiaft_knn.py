"""A probe: the share of each tissue among the five most similar training tiles."""

from types import MappingProxyType

from tiaft_plugin import hookimpl


@hookimpl
def register_probes(register):
    register("knn", NearestTiles())


class NearestTiles:
    kind, unit, title = "classes", "tile", "Tissue of the nearest tiles"
    settings = MappingProxyType({"neighbours": 5})

    def fit(self, features, targets, groups, seed):
        from sklearn.neighbors import KNeighborsClassifier  # here: `tiaft --help` need not wait
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = KNeighborsClassifier(self.settings["neighbours"])
        return make_pipeline(StandardScaler(), model).fit(features, targets).predict_proba
