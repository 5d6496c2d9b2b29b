"""Small grids on a tiny model."""

GRID = """
keep = "{keep}"
[recipe]
base = "{base}"
[recipe.optimiser]
lr = 3e-3
batch = 4
micro_batch = 4
[data.a]
data = "kvr:{{n}}"
epochs = {epochs}
[data.b]
data = "kvr:{{n}}:validation"
epochs = {epochs}
[data.c]
data = "kvr:6:test"
epochs = 1
[arms]
naive = "none"
replay = "replay(ratio=0.5)"
remix = "remix(data=kvr:8:test, stages=1, ratio={{ratio}})"
joint = "joint"
[[blocks]]
name = "first"
stages = [["a", "b"]]
arms = {arms}
seeds = {seeds}
axes = {{ n = [4], ratio = [1, 2] }}
"""


AGAIN = """
[[blocks]]
name = "again"
stages = [["a", "b", "c"]]
arms = ["naive"]
axes = {n = [4]}
"""


def write(folder, base="none", arms='["naive", "replay", "remix"]', seeds="[0, 1]", keep="records", epochs=3):
    path = folder / "grid.toml"
    path.write_text(GRID.format(base=base, arms=arms, seeds=seeds, keep=keep, epochs=epochs))
    return path
